"""What a search is asked to do, checked before anything is loaded, written or calibrated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from nas import arguments
from nas.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What a search is asked to do, written to `run.toml`; all of it decides the result, `trials` apart, which may grow.

    `where` are bounds such as `"macs<=75%"`. `trials` is the total over all eps. `delta` is the probability of a better candidate
    below which the optimizer stops; None is its default. `keep_dominated` treats choices that another one dominates like the rest.
    """

    eps: tuple[float, ...]
    optimizer: str = "eps_gp"
    trials: int = 60
    seed: int = 0
    minimize: str | None = None
    where: tuple[str, ...] = ()
    delta: float | None = None
    keep_dominated: bool = False

    def __post_init__(self) -> None:
        if not self.eps:
            raise InputError("a search needs at least one eps, such as --eps 0.005")
        checked = {
            "eps": tuple(_eps(value) for value in self.eps),
            "optimizer": _optimizer(self.optimizer),
            "trials": arguments.whole("trials", self.trials, 1),
            "seed": arguments.whole("seed", self.seed),
            "minimize": None if self.minimize is None else arguments.text("minimize", self.minimize, "params"),
            "where": arguments.texts("where", self.where, "macs<=75%"),
            "delta": None if self.delta is None else arguments.number("delta", self.delta),
            "keep_dominated": arguments.flag("keep_dominated", self.keep_dominated),
        }
        for name, value in checked.items():  # numpy's numbers as Python's, which files can hold
            object.__setattr__(self, name, value)
        if len(set(self.eps)) != len(self.eps):
            raise InputError(f"every eps may be given once, got {', '.join(map(str, self.eps))}")
        if self.delta is not None and not 0 < self.delta < 1:
            raise InputError(f"delta must lie between 0 and 1, got {self.delta}")


def asked(eps: Any, options: Mapping[str, Any]) -> SearchOptions:
    """The options as given to `nas.search`, or an error that names a wrong one."""
    known = [field.name for field in fields(SearchOptions)]
    for option in options:
        if option == "threads":
            raise InputError("search takes no 'threads'; call torch.set_num_threads(n) before it")
        if option not in known:
            raise InputError(f"search takes no option '{option}'{did_you_mean(option, known)}")
    values = tuple(eps) if isinstance(eps, Sequence) and not isinstance(eps, str | bytes) else (eps,)
    return SearchOptions(values, **options)


def _eps(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"eps must be a number or several, such as 0.005, got {arguments.shown(value)}")
    return arguments.number("eps", value, 0)


def _optimizer(value: object) -> str:
    if not isinstance(value, str):
        raise InputError(
            f"optimizer must be a name or path/to/file.py:Name, got {arguments.shown(value)}; "
            "OPTIMIZERS.add('mine', MyOptimizer) of nas.names gives a class of yours a name"
        )
    return arguments.text("optimizer", value, "eps_gp")
