"""Any assembled model as a folder: weights as safetensors, the architecture as JSON, and a loader that starts from the user's own model class."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from nas.arguments import shown
from nas.blocks.diff import Row, diff_text
from nas.blocks.recipe import recipe_of
from nas.blocks.reductions.depth import HandOn
from nas.cut import CutModel, put
from nas.cut_stage import Chain
from nas.errors import ContractError, DamagedFile, InputError, NasError, did_you_mean
from nas.files import Form, read_json
from nas.graph import StageGraph
from nas.layout import PassOn, Restored, Template, plain_attributes
from nas.space import TEACHER, Choice, Recipe
from nas.traced import TracedModel

WEIGHTS, ARCHITECTURE, DIFF = "model.safetensors", "architecture.json", "architecture.txt"
_VERSION = 1

_STAGE: Form = {"recipe": dict, "modules?": [str], "results?": [dict], "calls?": [dict], "one_argument?": bool}
_FORM: Form = {"format": str, "version": int, "sha256": str, "stages": {str: _STAGE}}

Model = TypeVar("Model", bound=nn.Module)


def save_model(graph: StageGraph, chosen: Mapping[str, tuple[Choice, nn.Module]], folder: Path) -> None:
    """Writes the teacher with the chosen blocks at their stages, and beside it what differs from the teacher, as JSON and as text."""
    if isinstance(graph, TracedModel):
        graph = graph.whole
    blocks = {stage: block for stage, (_, block) in chosen.items()}
    weights = _cut_weights(graph, blocks) if isinstance(graph, CutModel) else _graph_weights(graph, blocks)
    content = save_tensors({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()})
    stages = {name: _stage(graph, name, choice, block) for name, (choice, block) in chosen.items()}
    architecture = {"format": "stage-nas model", "version": _VERSION, "sha256": hashlib.sha256(content).hexdigest(), "stages": stages}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(content)
    (folder / ARCHITECTURE).write_text(json.dumps(architecture, indent=1), encoding="utf-8")
    (folder / DIFF).write_text(_diff(graph, chosen) + "\n", encoding="utf-8")


def load_model(folder: Path | str, model: Model, recipes: Sequence[Recipe] = ()) -> Model:
    """The saved model, rebuilt on `model`: a fresh one of the teacher's class, whose weights do not matter; it is changed and returned.

    Args:
        folder: what `nas search` or `nas export` wrote.
        model: what the teacher was before it was cut.
        recipes: those of the winner that are not registered; every other one is found by its registered name.

    Raises:
        InputError: a stage that the model lacks, or a recipe that is not known.
        InputError: no folder of a model, or a model in which any weight is missing, unexpected or of another shape.
        DamagedFile: files that are missing or damaged.
    """
    _check_arguments(folder, model)
    architecture, weights = _read(Path(folder))
    for name, stage in architecture["stages"].items():
        if "modules" not in stage:
            raise InputError(f"model folder '{folder}' was saved from a graph of steps; load it with load_graph and that graph")
        with _rebuilding(folder, name):
            places = _places(model, name, stage, recipes)
        for path, module in places.items():
            put(model, path, module)
    _fill(model, weights, folder)
    return model.eval()


def load_graph(folder: Path | str, graph: StageGraph, recipes: Sequence[Recipe] = ()) -> StageGraph:
    """The saved model as a graph, rebuilt on a fresh one like the teacher's; see `load_model`."""
    if not isinstance(folder, str | Path) or not isinstance(graph, StageGraph):
        raise InputError(f"load_graph needs a folder and a fresh graph like the teacher's, in this order; got {shown(folder)} and {shown(graph)}")
    architecture, weights = _read(Path(folder))
    blocks = {}
    for name, stage in architecture["stages"].items():
        graph.check_stages([name])
        with _rebuilding(folder, name):
            blocks[name] = _recipe(stage["recipe"], recipes).build(graph[name].module)
    steps = tuple(replace(step, module=blocks.get(step.name, step.module).eval()) for step in graph.steps)
    _fill(_Steps(StageGraph(graph.inputs, steps, graph.output)), weights, folder)
    return StageGraph(graph.inputs, steps, graph.output)


def library_free(model: nn.Module) -> nn.Module:
    """The loaded model without any class of this toolkit: another model on the same weights.

    Raises:
        ContractError: a block needs a class of the toolkit; names it.
    """
    free = copy.deepcopy(model, {id(value): value for value in (*model.parameters(), *model.buffers())})
    for name, module in list(free.named_modules()):
        if isinstance(module, Restored) and module.returns_bare_tensor:
            put(free, name, _without_place(module))
    bound = {name: type(module).__name__ for name, module in free.named_modules() if type(module).__module__.startswith("nas.")}
    if bound:
        name, kind = next(iter(bound.items()))
        raise ContractError(f"'{name}' is a {kind} of this toolkit, and {len(bound) - 1} more are; such a model needs the toolkit to be loaded")
    return free


def _without_place(place: Restored) -> nn.Module:
    """The block itself, with the attributes that callers may ask for; the place where its hand-on block may be called with more than a tensor."""
    hands_on = isinstance(place.block, HandOn)
    if hands_on and not place.one_argument:
        return place
    block = nn.Identity() if hands_on else place.block
    for name, value in place.shown.items():
        if not hasattr(block, name):
            setattr(block, name, value)
    return block


@contextmanager
def _rebuilding(folder: Path | str, stage: str) -> Iterator[None]:
    """Says which folder and stage it was; a recipe builds whatever its options say, so that wrong ones fail anywhere in it."""
    try:
        yield
    except NasError:
        raise
    except Exception as error:
        raise DamagedFile(f"model folder '{folder}': stage '{stage}' cannot be rebuilt: {type(error).__name__}: {error}") from error


def _check_arguments(folder: Any, model: Any) -> None:
    needs = "load_model needs a folder and a fresh model of the teacher's class"
    if not isinstance(folder, str | Path):
        raise InputError(f"{needs}, in this order; got a {type(folder).__name__} as the folder")
    if not isinstance(model, nn.Module):
        raise InputError(f"{needs}, got " + (f"the class {model.__name__}; write {model.__name__}()" if isinstance(model, type) else repr(model)))


def _check_folder(folder: Path) -> None:
    """Raises for a U-Net's folder, a run's, a file, or a folder that is not there, and names the folders of models nearby."""
    if _is_compact_unet(folder):
        raise InputError(f"'{folder}' holds a CompactUNet; load it with nas.spaces.tocsr.CompactUNet.from_pretrained('{folder}'), which needs no other model")
    if (folder / ARCHITECTURE).exists() or (folder / WEIGHTS).exists():
        return
    near = sorted(path.parent for place in (folder, folder.parent) if place.is_dir() for path in place.glob(f"*/{ARCHITECTURE}"))
    hint = f"did you mean {' or '.join(map(repr, map(str, near[:4])))}?" if near else f"a model's folder holds {ARCHITECTURE}; `nas search` writes RUN/winner"
    raise InputError(f"'{folder}' is no folder of a saved model; {hint}")


def _is_compact_unet(folder: Path) -> bool:
    """Whether the space `tocsr_unet` wrote the folder, as diffusers does."""
    try:
        config: dict[str, Any] = read_json(folder / "config.json", dict)
    except DamagedFile:
        return False
    return config.get("_class_name") == "CompactUNet"


class _Steps(nn.Module):
    """The modules of a graph under their steps' names."""

    def __init__(self, graph: StageGraph, blocks: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        for step in graph.steps:
            self.add_module(step.name.replace(".", "/"), (blocks or {}).get(step.name, step.module))


def _cut_weights(graph: CutModel, blocks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    with graph.installed(blocks):
        return dict(graph.model.state_dict())


def _graph_weights(graph: StageGraph, blocks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return dict(_Steps(graph, blocks).state_dict())


def _stage(graph: StageGraph, name: str, choice: Choice, block: nn.Module) -> dict[str, Any]:
    step = graph[name]
    sizes = [_size(block), _size(step.module)]
    row: dict[str, Any] = {
        "choice": choice.name, "recipe": choice.recipe.spec if choice.recipe else {"recipe": TEACHER}, "params": sizes[0], "teacher_params": sizes[1],
    }  # fmt: skip
    if not isinstance(graph, CutModel):
        return row
    assert step.layout is not None
    chain = step.module if isinstance(step.module, Chain) else None
    results = chain.results if chain else (step.layout.result,)
    calls = chain.calls if chain else ()
    return {
        **row, "modules": list(graph.paths[name]), "results": [result.to_json() for result in results], "calls": [call.to_json() for call in calls],
        "one_argument": step.layout.arguments.is_one_argument,
    }  # fmt: skip


def _diff(graph: StageGraph, chosen: Mapping[str, tuple[Choice, nn.Module]]) -> str:
    rows = []
    for step in [graph[name] for name in graph.paths] if isinstance(graph, CutModel) else graph.steps:
        choice, block = chosen.get(step.name, (None, step.module))
        parts = [graph.model.get_submodule(path) for path in graph.paths[step.name]] if isinstance(graph, CutModel) else [step.module]
        teacher = " + ".join(type(part).__name__ for part in parts)
        rows.append(Row(step.name, teacher, choice.name if choice else "=", _size(step.module), _size(block)))
    whole = _size(graph.model) if isinstance(graph, CutModel) else sum(row.before for row in rows)
    return diff_text(rows, whole, whole + sum(row.after - row.before for row in rows))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _places(model: nn.Module, name: str, stage: Mapping[str, Any], recipes: Sequence[Recipe]) -> dict[str, nn.Module]:
    paths = stage["modules"]
    known = dict(model.named_modules())
    for path in paths:
        if path not in known:
            near = did_you_mean(path, filter(None, known))
            raise InputError(f"stage '{name}': the given {type(model).__name__} has no module '{path}'{near}; give a fresh model of the teacher's class")
    results = [Template.from_json(content) for content in stage["results"]]
    calls = [Template.from_json(content) for content in stage["calls"]]
    if not paths or len(results) != len(paths):
        raise DamagedFile(f"stage '{name}' has {len(paths)} modules and {len(results)} results; export the model again")
    teacher = Chain([known[path] for path in paths], calls, results) if calls else known[paths[0]]
    block = _recipe(stage["recipe"], recipes).build(teacher)
    first = Restored(block, results[0], plain_attributes(known[paths[0]]), one_argument=stage.get("one_argument", False))
    return {paths[0]: first, **{path: PassOn(result) for path, result in zip(paths[1:], results[1:], strict=True)}}


def _recipe(spec: Mapping[str, Any], recipes: Sequence[Recipe]) -> Recipe:
    return next((recipe for recipe in recipes if recipe.spec == spec), None) or recipe_of(spec)


def _fill(model: nn.Module, weights: Mapping[str, Tensor], folder: Path | str) -> None:
    own = model.state_dict()
    wrong = {
        "missing": sorted(set(own) - set(weights)),
        "unexpected": sorted(set(weights) - set(own)),
        "of another shape": sorted(name for name in set(own) & set(weights) if own[name].shape != weights[name].shape),
    }
    found = [f"{len(names)} {kind}, such as '{names[0]}'" for kind, names in wrong.items() if names]
    if found:
        raise InputError(f"model folder '{folder}': the weights do not fit the model: {'; '.join(found)}; give a model of the class and sizes that were cut")
    model.load_state_dict(_tied(model, weights), assign=True)


def _tied(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights on the model's device; where the model has one parameter under several names, such as a tied head, one there too."""
    made: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    own = model.state_dict(keep_vars=True)
    device = next((value.device for value in own.values()), None)
    for name, value in own.items():
        same = first.setdefault(id(value), name)
        if same != name and torch.equal(weights[same], weights[name]):
            made[name] = made[same]
        else:
            moved = weights[name].to(device)
            made[name] = nn.Parameter(moved, value.requires_grad) if isinstance(value, nn.Parameter) else moved
    return made


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _check_folder(folder)
    try:
        architecture: dict[str, Any] = read_json(folder / ARCHITECTURE, _FORM)
        content = (folder / WEIGHTS).read_bytes()
        if architecture["format"] != "stage-nas model" or architecture["version"] != _VERSION:
            raise ValueError(f"{ARCHITECTURE} is not that of a model of this version")
        if hashlib.sha256(content).hexdigest() != architecture["sha256"]:
            raise ValueError(f"{WEIGHTS} has another hash than {ARCHITECTURE} says")
        return architecture, dict(load_tensors(content))
    except (OSError, ValueError, DamagedFile, SafetensorError) as error:
        raise DamagedFile(f"model folder '{folder}' cannot be read: {error}; export the model again") from error
