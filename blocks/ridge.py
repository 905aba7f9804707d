"""A closed-form finish for a fitted block: the linear maps that its outputs end in are solved by ridge regression.

A convolution or linear map is an *end* of an output if what is added to its result is added to that output. With all else as it is, the best change of its
weights is the minimiser `D` of `|X D - R|^2 / n + l |D|^2`: `X` `(n, in)` what the map reads (patches, and a 1 for the bias), `R` `(n, out)` what the
output lacks of the teacher's. `l` is chosen on held-out rows, and a change is kept only if the block's error on all held-out samples falls.

Done before the fit instead of after it, the same solution is a better start but often a worse end: the first steps spoil it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas.blocks.features import Features
from nas.devices import moved
from nas.graph import call_step

Judge = Callable[[], Tensor]
"""The block's held-out error by output as it stands, `(n_outputs,)`."""

LARGEST = 4096
"""Inputs of a map (channels times taps) above which it is left as it is: solving would take longer than fitting."""

ROWS, ROWS_EACH, WORK = 32768, 12, 1 << 30
"""Rows of `X` at most; of them so many for each input of the map, or what so many multiply-adds of `X^T X` allow, whichever is more."""

SAMPLES = 256
"""Samples that the rows come from, at least, if there are so many."""

CHUNK = 1 << 24
"""Numbers in the patches of one chunk of samples, at most."""

SHRINKAGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""`l` relative to the mean square of an input."""

_Hook = Callable[[str, Tensor, Tensor], Tensor | None]
_Map = nn.Conv2d | nn.Linear
_Rows = tuple[Tensor, Tensor]


@torch.no_grad()
def solve_ends(block: nn.Module, features: Features, fit: Tensor, heldout: Tensor, errors: Tensor, judge: Judge) -> tuple[int, Tensor]:
    """Solves every end of every output in turn, on the samples `fit` of the features; how many maps were changed, and the errors then.

    `errors` are what `judge` says of the block as it is.
    """
    modules, changed = dict(block.named_modules()), 0
    for name, output in _ends(block, features, fit[:2]):
        after = _solve(block, modules[name], output, features, fit, heldout, errors, judge)
        changed, errors = changed + (after is not None), errors if after is None else after
    return changed, errors


def _ends(block: nn.Module, features: Features, rows: Tensor) -> list[tuple[str, int]]:
    """(map, output) for every end, in the order of computation: found by pushing each map's result."""
    reads, _ = features.batch(rows)
    results: dict[str, list[Tensor]] = {}
    with torch.no_grad(), _hooked(block, lambda name, _, result: results.setdefault(name, []).append(result)):
        before = call_step(features.step, block, reads)
    found = []
    for name, (result, *again) in results.items():
        if again:
            continue
        push = result.std() * torch.randn(result.shape, generator=torch.Generator().manual_seed(0)).to(result)
        with torch.no_grad(), _hooked(block, partial(_pushed, name, push)):
            after = call_step(features.step, block, reads)
        for k, (old, new) in enumerate(zip(before, after, strict=True)):
            if old.shape == push.shape and float((new - old - push).abs().max()) <= 1e-3 * float(push.abs().max()):
                found.append((name, k))
    return found


def _pushed(wanted: str, push: Tensor, name: str, value: Tensor, result: Tensor) -> Tensor | None:
    del value
    return result + push if name == wanted else None


@contextmanager
def _hooked(block: nn.Module, hook: _Hook) -> Iterator[None]:
    """Calls the hook with name, input and result of every map that can be solved; what it returns replaces the result."""
    handles = [m.register_forward_hook(partial(_called, name, hook)) for name, m in block.named_modules() if _solvable(m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _called(name: str, hook: _Hook, module: nn.Module, arguments: tuple[Any, ...], result: Tensor) -> Tensor | None:
    del module
    return hook(name, arguments[0], result) if arguments else None


def _solvable(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d | nn.Linear) or not isinstance(module.weight, nn.Parameter) or not module.weight.requires_grad:
        return False
    plain = not isinstance(module, nn.Conv2d) or (module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str))
    return plain and module.weight[0].numel() < LARGEST


def _solve(block: nn.Module, module: Any, output: int, features: Features, fit: Tensor, heldout: Tensor, before: Tensor, judge: Judge) -> Tensor | None:
    """Solves one end; the block's errors with the change, None if that was not kept."""
    inputs = module.weight[0].numel()
    most = min(ROWS, max(ROWS_EACH * inputs, WORK // inputs**2))
    change = _best_change(_rows(block, module, output, features, fit, most), list(_rows(block, module, output, features, heldout, most // 4)))
    if change is None:
        return None
    kept = [parameter.clone() for parameter in module.parameters()]
    if module.bias is not None:
        module.bias += change[-1].to(module.bias)
        change = change[:-1]
    module.weight += change.T.reshape(module.weight.shape).to(module.weight)
    after = judge()
    if after.mean() < before.mean():
        return after
    for parameter, old in zip(module.parameters(), kept, strict=True):
        parameter.copy_(old)
    return None


def _best_change(rows: Iterable[_Rows], heldout: Sequence[_Rows]) -> Tensor | None:
    """`D` `(in, out)` of the shrinkage with the least held-out residual, looked for from the least on until it rises; None if nothing can be solved.

    By Cholesky in double precision, since eigenvalues of many equal zeros need not converge.
    """
    square, product = _normal_equations(rows)
    scale, best, least = square.diagonal().mean(), None, math.inf
    for shrinkage in SHRINKAGES:
        shrunk = square.clone()
        shrunk.diagonal().add_(shrinkage * scale)
        factor, failed = torch.linalg.cholesky_ex(shrunk)
        if failed:
            continue
        change = torch.cholesky_solve(product, factor)
        residual = sum(float((r - x @ change.to(x)).square().sum()) for x, r in heldout)
        if residual >= least:
            break
        best, least = change, residual
    return best


def _normal_equations(rows: Iterable[_Rows]) -> tuple[Tensor, Tensor]:
    """`X^T X / n` `(in, in)` and `X^T R / n` `(in, out)`, summed in single precision, in double precision."""
    sums: tuple[Tensor, Tensor] | None = None
    n = 0
    for x, r in rows:
        if sums is None:
            sums = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1], r.shape[1])
        n += len(x)
        sums[0].addmm_(x.T, x)
        sums[1].addmm_(x.T, r)
    assert sums is not None
    return sums[0].double() / n, sums[1].double() / n


def _rows(block: nn.Module, module: _Map, output: int, features: Features, samples: Tensor, most: int) -> Iterator[_Rows]:
    """About `most` rows of `X` and `R` in single precision, drawn evenly from samples spread over all, some samples at a time."""
    positions = features.batch(samples[:1])[1][output].numel() // module.weight.shape[0]
    samples = samples[torch.linspace(0, len(samples) - 1, min(len(samples), max(SAMPLES, -(-most // positions)))).long()]
    size = max(1, min(64, CHUNK // (positions * module.weight[0].numel())))
    share, random = min(1.0, most / (positions * len(samples))), torch.Generator().manual_seed(0)
    for part in torch.split(samples, size):
        reads, targets = features.batch(part)
        read: list[Tensor] = []
        handle = module.register_forward_hook(lambda _, arguments, __, read=read: read.append(arguments[0]))
        written = call_step(features.step, block, reads)
        handle.remove()
        x, r = _patches(module, read[0]), _last(module, targets[output] - written[output])
        if share < 1:
            chosen = moved(torch.randperm(len(x), generator=random)[: max(1, round(share * len(x)))], x.device)
            x, r = x[chosen], r[chosen]
        x = x.float()
        yield torch.cat([x, x.new_ones(len(x), 1)], 1) if module.bias is not None else x, r.float()


def _patches(module: _Map, value: Tensor) -> Tensor:
    """What the map multiplies its weights with, one row a position."""
    if isinstance(module, nn.Linear):
        return value.flatten(0, -2)
    unfolded = nn.functional.unfold(value, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
    return unfolded.transpose(1, 2).flatten(0, 1)


def _last(module: _Map, value: Tensor) -> Tensor:
    """The output with its channels last, one row a position."""
    return value.flatten(0, -2) if isinstance(module, nn.Linear) else value.movedim(1, -1).flatten(0, -2)
