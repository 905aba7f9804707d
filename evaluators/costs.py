"""Cost tables: what each choice of each stage costs, counted once on the shapes it reads; a candidate's cost is a sum of entries.

fvcore is the counter of record on real tensors, with a handle for scaled dot-product attention (it knows none and would only warn);
an operator it does not know is an error unless it is listed as one that multiplies nothing. torch's FlopCounterMode counts the same
again and must agree to the integer. On the meta device, where tracing does not work, and for models that fvcore cannot trace,
FlopCounterMode counts alone; it takes an operator without a formula for free, so that those which multiply are named in a note. A formula that
a user registers with torch (`register_flop_formula`) counts.
Recurrent layers apply each of their weight matrices once to every token, which is how both count them.

`params` counts every parameter, `macs` multiply-adds of convolutions and linear layers, `macs_with_attention` also those of products
between activations. Norms, activations and resizing count nothing.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from nas.arguments import shown
from nas.errors import ContractError, InputError
from nas.graph import CalledByStep, StageGraph, Values
from nas.problem import CostTable
from nas.space import Choice, Stage
from nas.user_code import user_code

Blocks = Mapping[tuple[str, str], nn.Module]
"""(stage name, choice name) -> block; a teacher's block that is not given is the graph's own."""

Measure = Callable[[nn.Module], float]
"""An additive number of a module, such as its parameters outside normalisation layers."""

REGISTER = "register one with torch.utils.flop_counter.register_flop_formula"
"""How users make the counter know an operator of their own, in floating-point operations: two a multiply-add."""

_FREE = {
    "add", "add_", "sub", "rsub", "mul", "mul_", "div", "div_", "neg", "pow", "sqrt", "rsqrt", "exp", "sin", "cos", "abs", "mean", "sum",
    "silu", "silu_", "gelu", "sigmoid", "tanh", "softmax", "mish", "group_norm", "layer_norm", "batch_norm", "upsample_nearest2d",
    "avg_pool2d", "max_pool2d", "pad", "repeat", "clone", "index_select", "linspace", "lt", "le", "ne", "logical_and", "movedim", "unflatten",
}  # fmt: skip
"""Operators without multiply-adds of convolutions, linear layers or attention; fvcore ignores others of the kind by itself."""


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-adds of one call: convolutions and linear layers, products between activations; and operators that multiply but are not counted."""

    linear: int
    attention: int
    uncounted: tuple[str, ...] = ()


def count_costs(
    graph: StageGraph, stages: Sequence[Stage], blocks: Blocks, inputs: Values, extra: Mapping[str, Measure] | None = None, *, strict: bool = True
) -> CostTable:
    """The table of `params`, `macs`, `macs_with_attention` and the `extra` measures for every stage and choice, and of the fixed steps.

    Args:
        graph: the teacher; steps that are no stage are the fixed part.
        stages: the searchable stages, in the order of the table's rows.
        blocks: a surrogate block for each choice but the teacher.
        inputs: graph inputs of one forward pass (batch 1 for costs per sample), real or on the meta device.
        extra: more additive numbers of a module, by metric name.
        strict: fvcore must know every operator and agree; otherwise torch's counter counts alone, which sees what really runs.

    Raises:
        ContractError: two steps share parameters, so no sum of entries is exact; or the two counters disagree; or a measure gives no number.
        UserCodeError: whatever a measure raises.
    """
    graph.check_stages([stage.name for stage in stages])
    read = {name: arguments for name, (arguments, _) in graph.passed(inputs).items()}
    uncounted: dict[str, set[str]] = {}
    measures: dict[str, Measure] = {"params": count_params, **(extra or {})}
    metrics = [*measures, "macs", "macs_with_attention"]
    _check_shared(graph, stages, blocks)

    def costs(module: nn.Module, step: str) -> list[float]:
        called = module if graph[step].layout is None else CalledByStep(graph[step], module)
        macs = count_macs(called, read[step], where=f"step '{step}'", strict=strict)
        for operator in macs.uncounted:
            uncounted.setdefault(operator, set()).add(step)
        return [*(_measured(name, measure, module, step) for name, measure in measures.items()), macs.linear, macs.linear + macs.attention]

    table = np.full((len(metrics), len(stages), max(len(stage.choices) for stage in stages)), np.nan)
    for s, stage in enumerate(stages):
        for k, choice in enumerate(stage.choices):
            table[:, s, k] = costs(_block(graph, stage, choice, blocks), stage.name)
    searched = {stage.name for stage in stages}
    rows = [costs(step.module, step.name) for step in graph.steps if step.name not in searched]
    fixed = np.sum(rows, axis=0) if rows else np.zeros(len(metrics))
    notes = tuple(f"MACs leave out '{name}' at {', '.join(sorted(steps))}: no count is known for it; {REGISTER}" for name, steps in sorted(uncounted.items()))
    return CostTable(dict(zip(metrics, table, strict=True)), dict(zip(metrics, map(float, fixed), strict=True)), notes)


def _measured(name: str, measure: Measure, module: nn.Module, step: str) -> float:
    with user_code(f"cost '{name}' at step '{step}'"):
        value = measure(module)
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ContractError(f"cost '{name}' must be a finite number of a module, got {shown(value)} at step '{step}'")
    return found


def count_params(module: nn.Module) -> int:
    """All parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, arguments: tuple[Any, ...], where: str = "module", *, strict: bool = True) -> Macs:
    """Multiply-adds of one call with these arguments.

    Raises:
        ContractError: an operator is unknown to the counter, or the counters disagree.
    """
    with _evaluated(module), torch.no_grad():
        by_torch = _count_by_torch(module, arguments)
        if not strict or any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in (*arguments, *module.parameters())):
            return by_torch
        by_fvcore = _count_by_fvcore(module, arguments, where)
    if by_fvcore != replace(by_torch, uncounted=()):
        raise ContractError(f"{where}: fvcore counts {by_fvcore}, torch's FlopCounterMode {by_torch}; one of them misses an operator")
    return by_fvcore


_ATTENTION_BY_TORCH = ("bmm", "baddbmm", "_scaled_dot_product", "_flash_attention", "_efficient_attention")


def _attention_flops(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    del rest, more
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _recurrent_layer_flops(x: Any, from_input: Any, from_hidden: Any, *rest: Any, **more: Any) -> int:
    del rest, more
    return int(2 * math.prod(x[:-1]) * (math.prod(from_input) + math.prod(from_hidden)))


def _recurrent_flops(x: Any, weights: Any, *rest: Any, **more: Any) -> int:
    del rest, more
    return int(2 * math.prod(x[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2))


_FORMULAS = {
    # on CPU attention runs as an operator the counter has no formula for, and would count as 0 without a word
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_layer_flops,
    torch.ops.aten._cudnn_rnn: _recurrent_flops,
}
_MULTIPLIES = re.compile(
    r"(^|_)(mm|mv|addmv|dot|vdot|matmul|linear|bilinear|trilinear|einsum|conv|convolution|c?dist|fft|linalg|solve|inverse|cholesky"
    r"|rnn|lstm|gru|attention|transformer|quantized|sparse|mkldnn|cudnn|miopen)(\d?d)?(_|$)"
)


class _Uncounted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the operators that multiply, by their name or because they are not torch's own, and for which the counter has no formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = str(func.name()).partition("::")
        name = name.partition(".")[0]
        known = func.overloadpacket in flop_registry or func.overloadpacket in _FORMULAS or name.startswith("upsample") or "norm" in name
        if not known and (namespace not in ("aten", "prim", "prims") or _MULTIPLIES.search(name)):
            self.found.add(name if namespace == "aten" else f"{namespace}::{name}")
        return func(*args, **(kwargs or {}))


def _count_by_torch(module: nn.Module, arguments: tuple[Any, ...]) -> Macs:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator, which would count as 0
    try:
        with _Uncounted() as uncounted, FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            module(*arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    linear = attention = 0
    for operator, flops in counter.get_flop_counts().get("Global", {}).items():
        if str(operator).removeprefix("aten.").startswith(_ATTENTION_BY_TORCH):
            attention += flops
        else:
            linear += flops
    return Macs(linear // 2, attention // 2, tuple(sorted(uncounted.found)))


_LINEAR_BY_FVCORE = ("conv", "linear", "addmm", "recurrent")
_ATTENTION_BY_FVCORE = ("attention", "bmm", "baddbmm", "matmul", "mm", "einsum")


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> dict[str, int]:
    del outputs
    query, key, value = (get_shape(inputs[k]) for k in range(3))
    batch = int(np.prod(query[:-2]))
    return {"attention": batch * query[-2] * key[-2] * (query[-1] + value[-1])}


def _baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> dict[str, int]:
    del outputs
    left, right = get_shape(inputs[1]), get_shape(inputs[2])
    return {"baddbmm": left[0] * left[1] * left[2] * right[2]}


def _recurrent_macs(inputs: list[Any], outputs: list[Any]) -> dict[str, int]:
    del outputs
    weights = next(value for value in reversed(inputs[:4]) if value.node().kind() == "prim::ListConstruct").node().inputs()
    matrices = [math.prod(shape) for shape in map(get_shape, weights) if len(shape) == 2]
    return {"recurrent": math.prod(get_shape(inputs[0])[:-1]) * sum(matrices)}


def _count_by_fvcore(module: nn.Module, arguments: tuple[Any, ...], where: str) -> Macs:
    analysis = FlopCountAnalysis(module, arguments).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs, "aten::baddbmm", _baddbmm_macs)
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        analysis.set_op_handle(f"aten::{name}", _recurrent_macs)
    with _quiet():
        counts = analysis.by_operator()
        unknown = sorted({name.removeprefix("aten::") for name in analysis.unsupported_ops()} - _FREE)
    if unknown:
        raise ContractError(f"{where}: no count is known for {', '.join(unknown)}; {REGISTER} and pass strict_counts=False")
    return Macs(int(sum(counts[name] for name in _LINEAR_BY_FVCORE)), int(sum(counts[name] for name in _ATTENTION_BY_FVCORE)))


def _block(graph: StageGraph, stage: Stage, choice: Choice, blocks: Blocks) -> nn.Module:
    if (stage.name, choice.name) in blocks:
        return blocks[stage.name, choice.name]
    if choice.recipe is None:
        return graph[stage.name].module
    raise InputError(f"costs need a block for choice '{choice.name}' of stage '{stage.name}', none was given")


def _check_shared(graph: StageGraph, stages: Sequence[Stage], blocks: Blocks) -> None:
    """Raises when a parameter is used at two steps; choices of one stage may share, since a candidate has only one of them."""
    owner: dict[int, str] = {}
    modules = [(step.name, step.module) for step in graph.steps]
    modules += [(stage.name, _block(graph, stage, choice, blocks)) for stage in stages for choice in stage.choices]
    for step, module in modules:
        for name, parameter in module.named_parameters():
            if owner.setdefault(id(parameter), step) != step:
                raise ContractError(f"parameter '{name}' is used at steps '{owner[id(parameter)]}' and '{step}'; costs add up only without shared parameters")


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, each part's own mode restored afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Traces without fvcore's log lines about what it skips, which this module judges itself."""
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
