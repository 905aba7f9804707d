"""`CompactUNet`: a U-Net assembled from teacher stages and surrogate stages, saved and loaded in diffusers' format.

The stock class must not be used for that: a checkpoint with removed layers, reloaded by `UNet2DConditionModel`, raises nothing, leaves
tensors uninitialised and predicts NaN. Here the config holds the whole architecture, and loading raises on any missing or unexpected key.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from nas.blocks.diff import Row, diff_text
from nas.errors import DamagedFile, InputError, NasError
from nas.files import MANIFEST, damage, read_json
from nas.graph import StageGraph
from nas.spaces.tocsr.expansion import Variant, expansion_layers
from nas.spaces.tocsr.folding import Saved, fold, reserve
from nas.spaces.tocsr.library import LIBRARY_VERSION
from nas.spaces.tocsr.recipes import StageRecipe
from nas.spaces.tocsr.stages import Stage
from nas.spaces.tocsr.unet import NoiseConversion, check_channels, check_config, check_sizes, stages_of, unet_graph

_CONFIG_LIMIT = 1 << 20  # bytes; a config is about 3 kB

_OWN = (
    inspect.Parameter("architecture", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None),
    inspect.Parameter("library_version", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=LIBRARY_VERSION),
    inspect.Parameter("input_skip", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False),
    inspect.Parameter("scheduler", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None),
    inspect.Parameter("expansion", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None),
    inspect.Parameter("folded_tokens", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None),
)
_STOCK = tuple(inspect.signature(UNet2DConditionModel.__init__).parameters.values())


def _configured(self: "CompactUNet", *args: Any, **config: Any) -> None:
    """See `CompactUNet`."""
    own = {parameter.name: config.pop(parameter.name, parameter.default) for parameter in _OWN}
    UNet2DConditionModel.__init__(self, *args, **config)
    self._restage(**own)


_configured.__signature__ = inspect.Signature([*_STOCK, *_OWN])  # type: ignore[attr-defined]  # diffusers reads the config's keys from it


class CompactUNet(UNet2DConditionModel):  # type: ignore[misc]
    """A diffusers U-Net some of whose stages are surrogate blocks; called like `UNet2DConditionModel`, predicts the noise.

    Config keys besides the stock ones (which describe the teacher):
        architecture: stage name -> recipe spec of the stages that are replaced; None or {} is the teacher.
        library_version: of the recipes; another version is refused.
        input_skip: the network predicts the noise less sqrt(1 - abar_t) x_t, which is added to its output.
        scheduler: the diffusers scheduler config (betas, prediction type) that an input skip or a v prediction needs.
        expansion: `[variant, old channels]` of a network whose first and last convolutions are those of Table S4's v1 or v3; None is v2, the stock ones.
        folded_tokens: length of the text context that is folded into cross-attention (see `folding`); None if text is read.
    """

    __init__ = register_to_config(_configured)

    def _restage(
        self,
        architecture: Mapping[str, Any] | None,
        library_version: str,
        input_skip: bool,
        scheduler: Mapping[str, Any] | None,
        expansion: tuple[Variant, int] | None,
        folded_tokens: int | None,
    ) -> None:
        if library_version != LIBRARY_VERSION:
            raise InputError(f"the model is of library version {library_version}, this toolkit builds version {LIBRARY_VERSION}; use the one that made it")
        if input_skip and scheduler is None:
            raise InputError("config: input_skip needs the scheduler's config (its betas) beside it")
        check_config(self.config)
        if expansion is not None:
            width, kernel = self.config.block_out_channels[0], self.config.conv_in_kernel
            self.conv_in, self.conv_out = expansion_layers(*expansion, self.config.in_channels, width, kernel)
        self.noise_conversion = None if scheduler is None else NoiseConversion(scheduler, input_skip)
        stages = stages_of(self)
        for name, spec in (architecture or {}).items():
            if name not in stages:
                raise InputError(f"config: architecture names stage '{name}', the network has {', '.join(stages)}")
            stages[name] = StageRecipe.of(spec).build(stages[name])
        self._install(stages)
        if folded_tokens is not None:
            reserve(self, folded_tokens)

    def _install(self, stages: Mapping[str, Stage]) -> None:
        """Takes the stages as its blocks and lays out the graph."""
        self.down_blocks = nn.ModuleList([stage for name, stage in stages.items() if name.startswith("down")])
        self.up_blocks = nn.ModuleList([stage for name, stage in stages.items() if name.startswith("up")])
        self.mid_block = stages.get("mid")
        self._graph = unet_graph(self)

    @property
    def graph(self) -> StageGraph:
        """The steps of the network, on its own modules."""
        return self._graph

    @classmethod
    def of(cls, unet: UNet2DConditionModel, scheduler: Mapping[str, Any] | None = None, *, input_skip: bool = False) -> "CompactUNet":
        """The network as a `CompactUNet` that replaces nothing, on the same modules: how a teacher is exported, and given its noise conversion."""
        if isinstance(unet, cls) and scheduler is None:
            return cls.assemble(unet, {})
        return cls._sharing(unet, stages_of(unet), {"input_skip": input_skip, "scheduler": None if scheduler is None else dict(scheduler)})

    @classmethod
    def assemble(cls, teacher: UNet2DConditionModel, blocks: Mapping[str, tuple[StageRecipe, nn.Module]]) -> "CompactUNet":
        """The teacher with other blocks at some stages, sharing all modules (nothing is copied).

        Args:
            teacher: the network the blocks were made for, with no surrogate stage of its own.
            blocks: stage name -> the recipe and the block it made.
        """
        stages = stages_of(teacher)
        if getattr(teacher.config, "architecture", None):
            raise InputError("a model is assembled from its teacher, and the given one has surrogate stages already")
        for name, (_, block) in blocks.items():
            if name not in stages or not isinstance(block, Stage):
                raise InputError(f"assemble: '{name}' must be one of {', '.join(stages)} and its block a stage of a U-Net, got {type(block).__name__}")
            stages[name] = block
        architecture = {name: recipe.spec for name, (recipe, _) in blocks.items()}
        return cls._sharing(teacher, stages, {"architecture": architecture})

    @classmethod
    def _sharing(cls, unet: UNet2DConditionModel, stages: Mapping[str, Stage], own: Mapping[str, Any]) -> "CompactUNet":
        config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
        with torch.device("meta"):
            model: CompactUNet = cls.from_config({**config, **own})
        for name in ("conv_in", "time_proj", "time_embedding", "conv_norm_out", "conv_act", "conv_out"):
            setattr(model, name, getattr(unet, name))
        if model.noise_conversion is not None:
            model.noise_conversion = NoiseConversion(model.config.scheduler, model.config.input_skip).to(unet.device)
        model._install(stages)
        model.training = unet.training  # the shared modules keep their own modes
        return model

    @classmethod
    def from_teacher_folder(cls, folder: str | Path) -> "CompactUNet":
        """The teacher of a diffusers folder with `unet/` and `scheduler/`; a `CompactUNet` lies there as well as a stock network.

        Raises:
            InputError: a file is missing or cannot be read, or the network is of another architecture.
            DamagedFile: the weights do not fit the config.
        """
        folder = Path(folder)
        config = _read_json(folder / "unet" / "config.json")
        if config.get("_class_name") not in (cls.__name__, UNet2DConditionModel.__name__):
            raise InputError(f"teacher folder '{folder}': unet must be a UNet2DConditionModel, got {config.get('_class_name')}")
        check_config(config)
        check_channels(config)
        scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
        try:
            return cls.from_pretrained(folder / "unet", scheduler=scheduler)
        except InputError as error:
            raise InputError(f"teacher folder '{folder}': unet cannot be loaded: {error}") from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "CompactUNet":
        """The model saved in a folder (or hub repository); takes diffusers' options, such as `torch_dtype` and `subfolder`.

        Raises:
            InputError: there is no such folder, and no hub repository has such a name.
            DamagedFile: a weight is missing, unexpected or of another shape.
        """
        options["output_loading_info"] = True
        options["use_safetensors"] = True
        folder = Path(pretrained_model_name_or_path, options.get("subfolder") or "")
        if folder.is_dir():
            _check_folder(folder)
        elif len(Path(pretrained_model_name_or_path).parts) != 2:  # a repository is OWNER/NAME; diffusers would ask the hub for long
            raise InputError(f"no model folder '{folder}'; a search writes one under its run, such as runs/NAME/winner")
        try:
            loaded: tuple[CompactUNet, dict[str, Any]] = super().from_pretrained(pretrained_model_name_or_path, **options)
        except NasError:
            raise
        except OSError as error:
            raise InputError(f"{pretrained_model_name_or_path}: {str(error).splitlines()[0]}") from error
        except Exception as error:  # diffusers builds whatever a config says: a wrong one fails anywhere in it
            reason = (str(error).split(". ")[0].splitlines() or [""])[0][:200]
            raise DamagedFile(f"{pretrained_model_name_or_path}: {reason or type(error).__name__}; save the model again") from error
        model, info = loaded
        wrong = {kind: info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs") if info.get(kind)}
        if wrong:
            found = "; ".join(f"{len(keys)} {kind.replace('_', ' ')}, such as {keys[0]!r}" for kind, keys in wrong.items())
            raise DamagedFile(f"{pretrained_model_name_or_path}: the weights do not fit the config's architecture: {found}; save the model again")
        return model

    def fold_context(self, context: Tensor) -> Saved:
        """Folds a text context `(1, T, D)` into the network, which predicts from now on what it would for that context, whatever text it is given.

        Raises:
            InputError: there is one already.
        """
        if self.config.folded_tokens is not None:
            raise InputError("the network has a folded context already")
        saved = fold(self, context)
        self.register_to_config(folded_tokens=context.shape[1])
        return saved

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Not available: FreeU rewrites skips inside stock blocks, which stages are not.

        Raises:
            InputError: always, rather than being ignored without a word.
        """
        del s1, s2, b1, b2
        raise InputError("CompactUNet has no FreeU; call the network without it")

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, *, return_dict: bool = True, **unsupported: Any
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """The noise prediction, `(B, C, H, W)` of any size, for `sample`, `timestep` (number or `(B,)`) and text `(B, L, E)`."""
        for name, value in unsupported.items():
            if value is not None:
                raise InputError(f"CompactUNet takes sample, timestep and encoder_hidden_states only, got {name}")
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        eps = self._graph.run({"sample": sample, "timestep": timesteps, "text": encoder_hidden_states})
        return UNet2DConditionOutput(sample=eps) if return_dict else (eps,)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path, dict, _CONFIG_LIMIT)
    except DamagedFile as error:
        raise InputError(f"teacher folder: {error}; a teacher needs unet/ and scheduler/ as diffusers writes them") from error
    return content


def _check_folder(folder: Path) -> None:
    """Raises if a file is not what the folder's manifest (if there is one) vouches for, or the config asks for a network beyond all measure."""
    if (folder / MANIFEST).exists() and (wrong := damage(folder)):
        raise DamagedFile(f"{wrong[0]}; save the model again")
    if (folder / "config.json").exists():
        check_sizes(read_json(folder / "config.json", dict, _CONFIG_LIMIT))


def architecture_diff(model: CompactUNet) -> str:
    """Stage by stage, what the teacher has and what the model has in its place, with parameters before and after."""
    with torch.device("meta"):
        teacher = CompactUNet.from_config({**model.config, "architecture": None})
    before, after = stages_of(teacher), stages_of(model)
    architecture = model.config.architecture or {}
    rows = [
        Row(name, _units(stage), StageRecipe.of(architecture[name]).name if name in architecture else "=", _size(stage), _size(after[name]))
        for name, stage in before.items()
    ]
    return diff_text(rows, _size(teacher), _size(model))


def _units(stage: Stage) -> str:
    return "".join("R" + "A" * (attention is not None) for _, attention in stage.layers)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
