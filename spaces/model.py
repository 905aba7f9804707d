"""Any trained model as a search space: cut by module names, with the generic reductions or recipes of one's own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas import arguments
from nas.blocks.calibration import CalibrationSettings
from nas.blocks.offer import Offer, offer
from nas.cut import CutModel, Stages, cut
from nas.data import Splits
from nas.errors import InputError
from nas.evaluators.costs import Measure
from nas.evaluators.divergence import Divergence, Settings, mean_squared_error
from nas.graph import StageGraph
from nas.model_call import ModelCall
from nas.spaces.network import Loss, NetworkSpace
from nas.spaces.rules import NamedRule
from nas.traced import NotTraceable, trace

LOAD_MODEL = """from nas.blocks.saved import load_model

model = load_model("FOLDER", YourModel())  # a fresh model of the teacher's class; first import the file with your recipes"""


def model_space(
    name: str,
    model: nn.Module,
    stages: Stages,
    data: Splits,
    recipes: Offer | None = None,
    *,
    divergence: Divergence = mean_squared_error,
    output: str | int | Callable[[Any], Tensor] | None = None,
    call: Callable[[nn.Module, Mapping[str, Tensor]], Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    loss: Loss | None = None,
    reuse: bool = True,
    rules: Sequence[NamedRule] = (),
    costs: Mapping[str, Measure] | None = None,
    calibration: CalibrationSettings | None = None,
    evaluation: Settings | None = None,
    home: Path | None = None,
) -> NetworkSpace:
    """A search space over a model's own modules.

    Args:
        name: what the space is called.
        model: trained, in evaluation mode, on the device to run on.
        stages: stage name -> qualified name of a module (or of several in a row), as `model.named_modules()` spells them.
        data: samples to calibrate, measure and verify on; `nas.batches.split` makes them from any iterable of batches.
        recipes: for all stages (those that do not fit one are left out there), or for each stage by name (then they must fit);
            by default one of every generic reduction.
        divergence: per-sample distance of two outputs; see `nas.evaluators.divergences`.
        output: which part of the model's output counts: key, attribute, index or function.
        call: `(model, inputs) -> output`, for signatures that take more than tensors by name or position.
        constants: further keyword arguments of the model.
        loss: the task's own loss `(output, samples) -> float`, reported on held-out samples.
        reuse: whether to look for the data flow between stages, by torch.fx and then by torch.export, so that candidates share what they
            agree on; where both fail, whole passes are run, and a note says why.
        rules: what is allowed, on `{stage: choice name}`; `nas.spaces.rules.Forbid` forbids a combination.
        costs: further additive costs, name -> number of a module; `--minimize` and `--where` take them.
        calibration: how blocks are fitted.
        evaluation: how candidates are measured.
        home: where blocks and measured values are kept; None is `$NAS_HOME`.

    Raises:
        InputError: a stage, sample set or model that cannot be used as given.
        DoesNotFit: a recipe named for a stage cannot be applied to it.
        ContractError: a recipe makes a block that writes something else than the teacher's.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, got {arguments.shown(model)}")
    if not isinstance(data, Splits):
        raise InputError(f"data must be three sample sets, got a {type(data).__name__}; make them by nas.batches.split(nas.batches.collect(batches))")
    arguments.text("a space's name", name, "mine")
    if call is not None:
        arguments.function("call", call)
    if loss is not None:
        arguments.function("loss", loss)
    constants = {} if constants is None else arguments.options("constants", constants, written=False)
    costs = {} if costs is None else arguments.options("costs", costs, written=False)
    rules = arguments.several("rules", rules, "[Forbid({'low': 'bypass'})]")
    calibration = arguments.instance("calibration", calibration or CalibrationSettings(), CalibrationSettings, "leave it out for the default")
    evaluation = arguments.instance("evaluation", evaluation or Settings(), Settings, "leave it out for the default")
    home = None if home is None else arguments.folder("home", home)
    graph, why = _graph(cut(model, stages, data.fit, ModelCall(call, constants, output)), data, reuse)
    offered = offer(graph, recipes, {key: value[:1] for key, value in data.fit.inputs.items()})
    return NetworkSpace(
        name, graph, offered.stages, data, divergence, loss, calibration=calibration, evaluation=evaluation,
        home=home, notes=(*why, *offered.notes), left_out=offered.left_out, rules=rules, extra_costs=costs, strict_counts=False,
        loading=LOAD_MODEL,
    )  # fmt: skip


def _graph(whole: CutModel, data: Splits, reuse: bool) -> tuple[StageGraph, tuple[str, ...]]:
    """The model with its data flow if that can be found, and a note if not."""
    if not reuse:
        return whole, ()
    try:
        return trace(whole, data.fit), ()
    except NotTraceable as reason:
        untraced = reason
    from nas.exported import export

    try:
        return export(whole, data.fit), ()
    except NotTraceable as reason:
        return whole, (f"candidates are measured by whole passes of the model, which cannot be traced: {untraced}; {reason}",)
