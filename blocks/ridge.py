"""A closed-form finish for a fitted block: the linear maps that its outputs end in are solved by ridge regression.

A convolution or linear map is an *end* of an output if what is added to its result is added to that output. With all else as it is, the best change of the
weights of an output's ends is the minimiser `D` of `|X D - R|^2 / n + l |S D|^2`: `X` `(n, in)` what the ends read (patches, and a 1 for a bias), `S` for
every column of `X` the root mean square of what its end reads, `R` `(n, out)` what the output lacks of the teacher's. `l` is chosen on held-out rows, and
a change is kept only if the block's error on all held-out samples falls.

Done before the fit instead of after it, the same solution is a better start but often a worse end: the first steps spoil it.
"""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
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
"""Inputs of the maps solved together (channels times taps), at most; a larger map is left as it is: solving would take longer than fitting."""

ROWS, ROWS_EACH, WORK = 32768, 12, 1 << 30
"""Rows of `X` at most; of them so many for each input of the maps, or what so many multiply-adds of `X^T X` allow, whichever is more."""

SAMPLES = 256
"""Samples that the rows come from, at least, if there are so many."""

CHUNK = 1 << 24
"""Numbers in the patches of one chunk of samples, at most."""

SHRINKAGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What `l` may be."""

_STRIPS = 4  # that the upper triangle of a product is computed in

_Hook = Callable[[str, Tensor, Tensor], Tensor | None]
_Map = nn.Conv2d | nn.Linear
_Maps = dict[str, _Map]
_Rows = tuple[Tensor, Tensor]


@torch.no_grad()
def solve_ends(block: nn.Module, features: Features, fit: Tensor, heldout: Tensor, errors: Tensor, judge: Judge) -> tuple[int, Tensor]:
    """Solves the ends of every output in turn, on the samples `fit` of the features; how many maps were changed, and the errors then.

    `errors` are what `judge` says of the block as it is.
    """
    changed = 0
    for output, maps in _together(block, _ends(block, features, fit[:2])):
        after = _solve(block, maps, output, features, fit, heldout, errors, judge)
        if after is not None:
            changed, errors = changed + len(maps), after
    return changed, errors


def _together(block: nn.Module, ends: Iterable[tuple[str, int]]) -> list[tuple[int, _Maps]]:
    """(output, its ends by name), those of one output and kind together as long as they are not too large."""
    modules: dict[str, Any] = dict(block.named_modules())
    groups: list[tuple[int, _Maps]] = []
    for name, output in ends:
        for its, maps in groups:
            one = next(iter(maps.values()))
            if its == output and isinstance(one, nn.Linear) == isinstance(modules[name], nn.Linear) and _inputs((*maps.values(), modules[name])) < LARGEST:
                maps[name] = modules[name]
                break
        else:
            groups.append((output, {name: modules[name]}))
    return groups


def _ends(block: nn.Module, features: Features, rows: Tensor) -> list[tuple[str, int]]:
    """(map, output) for every end, in the order of computation: found by pushing each map's result."""
    reads, _ = features.batch(rows)
    results: dict[str, list[Tensor]] = {}
    with torch.no_grad(), _hooked(block, lambda name, _, result: results.setdefault(name, []).append(result)):
        before = call_step(features.step, block, reads)
    found = []
    for name, (result, *again) in results.items():
        if again or all(result.shape != old.shape for old in before):
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


def _solve(block: nn.Module, maps: _Maps, output: int, features: Features, fit: Tensor, heldout: Tensor, before: Tensor, judge: Judge) -> Tensor | None:
    """Solves ends of one output together; the block's errors with the change, None if that was not kept."""
    sizes = [_inputs([module]) for module in maps.values()]
    inputs = sum(sizes)
    most = min(ROWS, max(ROWS_EACH * inputs, WORK // inputs**2))
    change = _best_change(_rows(block, maps, output, features, fit, most), list(_rows(block, maps, output, features, heldout, most // 4)), sizes)
    if change is None:
        return None
    parameters = [parameter for module in maps.values() for parameter in module.parameters()]
    kept = [parameter.clone() for parameter in parameters]
    bias = next((module.bias for module in maps.values() if module.bias is not None), None)
    if bias is not None:
        bias += change[-1].to(bias)
    for module, part in zip(maps.values(), torch.split(change[:inputs], sizes), strict=True):
        module.weight += part.T.reshape(module.weight.shape).to(module.weight)
    after = judge()
    if after.mean() < before.mean():
        return after
    for parameter, old in zip(parameters, kept, strict=True):
        parameter.copy_(old)
    return None


def _inputs(maps: Iterable[_Map]) -> int:
    """What the maps read at one position, in numbers."""
    return sum(module.weight[0].numel() for module in maps)


def _best_change(rows: Iterable[_Rows], heldout: Sequence[_Rows], sizes: Sequence[int]) -> Tensor | None:
    """`D` `(in, out)` of the shrinkage with the least held-out residual, looked for from the least on until it rises; None if nothing can be solved.

    `sizes` are the numbers of columns that the ends have; a last column of ones counts as the last end's.
    By Cholesky, since eigenvalues of many equal zeros need not converge.
    """
    square, product = _normal_equations(rows)
    of_maps = torch.split(square.diagonal(), [*sizes[:-1], len(square) - sum(sizes[:-1])])
    scale = torch.cat([own.mean().expand(len(own)) for own in of_maps]).clamp(min=1e-6 * square.diagonal().mean())
    best, least = None, math.inf
    for shrinkage in SHRINKAGES:
        shrunk = square.clone()
        shrunk.diagonal().add_(shrinkage * scale)
        factor, failed = torch.linalg.cholesky_ex(shrunk, upper=True)
        if failed:
            continue
        change = torch.cholesky_solve(product, factor, upper=True)
        residual = sum(float((r - x @ change.to(x)).square().sum()) for x, r in heldout)
        if residual >= least:
            break
        best, least = change, residual
    return best


def _normal_equations(rows: Iterable[_Rows]) -> tuple[Tensor, Tensor]:
    """`X^T X / n` `(in, in)`, of which only the upper triangle is right, and `X^T R / n` `(in, out)`."""
    sums: tuple[Tensor, Tensor] | None = None
    n = 0
    for x, r in rows:
        if sums is None:
            sums = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1], r.shape[1])
        n += len(x)
        for part in torch.arange(x.shape[1]).chunk(_STRIPS):
            start, end = int(part[0]), int(part[-1]) + 1
            sums[0][start:end, start:].addmm_(x[:, start:end].T, x[:, start:])
        sums[1].addmm_(x.T, r)
    assert sums is not None
    return sums[0] / n, sums[1] / n


def _rows(block: nn.Module, maps: _Maps, output: int, features: Features, samples: Tensor, most: int) -> Iterator[_Rows]:
    """About `most` rows of `X` and `R` in single precision, drawn evenly from samples spread over all, some samples at a time."""
    one = next(iter(maps.values()))
    positions = features.batch(samples[:1])[1][output].numel() // one.weight.shape[0]
    samples = samples[torch.linspace(0, len(samples) - 1, min(len(samples), max(SAMPLES, -(-most // positions)))).long()]
    size = max(1, min(64, CHUNK // (positions * _inputs(maps.values()))))
    share, random = min(1.0, most / (positions * len(samples))), torch.Generator().manual_seed(0)
    for part in torch.split(samples, size):
        reads, targets = features.batch(part)
        read: dict[str, Tensor] = {}
        with _hooked(block, partial(_noted, maps, read)):
            written = call_step(features.step, block, reads)
        x, r = _inputs_of(maps, read), _last(one, targets[output] - written[output])
        if share < 1:
            chosen = moved(torch.randperm(len(x), generator=random)[: max(1, round(share * len(x)))], x.device)
            x, r = x[chosen], r[chosen]
        yield x, r.float()


def _noted(wanted: Container[str], read: dict[str, Tensor], name: str, value: Tensor, result: Tensor) -> None:
    del result
    if name in wanted:
        read[name] = value


def _inputs_of(maps: _Maps, read: Mapping[str, Tensor]) -> Tensor:
    """`X` `(n, in)` of what the maps read, in single precision: their patches side by side, last a 1 if any of them has a bias."""
    parts = [_patches(module, read[name]) for name, module in maps.items()]
    if any(module.bias is not None for module in maps.values()):
        parts.append(parts[0].new_ones(()).expand(*parts[0].shape[:-1], 1))
    return torch.cat(parts, -1).flatten(0, -2).float()


def _patches(module: _Map, value: Tensor) -> Tensor:
    """What the map multiplies its weights with, `(..., in)`."""
    if isinstance(module, nn.Linear):
        return value
    unfolded = nn.functional.unfold(value, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
    return unfolded.transpose(1, 2)


def _last(module: _Map, value: Tensor) -> Tensor:
    """The output with its channels last, one row a position."""
    return value.flatten(0, -2) if isinstance(module, nn.Linear) else value.movedim(1, -1).flatten(0, -2)
