"""Searches and trainings in TensorBoard, Weights & Biases or MLflow: scalars by trial or by step."""

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nas.amounts import exact
from nas.callbacks import Callback
from nas.errors import InputError
from nas.registry import Registry
from nas.trial import Trial

if TYPE_CHECKING:
    from nas.study import Study


class Sink(Protocol):
    """Where scalars go."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Takes named numbers at a step."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


class ScalarLogger:
    """A callback that sends a search's numbers to a sink: costs, L, and every eps' cheapest feasible cost, by trial; every block's calibration."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def start(self, study: "Study") -> None:
        """Logs calibration errors and curves, and the trials of earlier sessions."""
        for block, curve in (study.record.fact("curves") or {}).items():
            for step, error in (point for point in curve if len(point) == 2):
                self._sink.log({f"calibration/{block}": error}, int(step))
        errors = study.problem.calibration_errors
        if errors is not None:
            for k in range(1, errors.shape[1]):
                known = {f"calibration_error/{stage.name}": float(errors[s, k]) for s, stage in enumerate(study.problem.space.stages) if errors[s, k] >= 0}
                self._sink.log(known, k)
        trials = study.trials
        for number in range(len(trials)):
            self._sink.log(scalars(study, trials[: number + 1]), number)

    def trial(self, study: "Study", trial: Trial) -> None:
        """Logs the trial."""
        self._sink.log(scalars(study, study.trials[: trial.number + 1]), trial.number)

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Closes the sink."""
        del result
        self._sink.close()


def scalars(study: "Study", trials: list[Trial]) -> dict[str, float]:
    """The numbers of the last trial, and each eps' incumbent after it."""
    last = trials[-1]
    out = {f"cost/{metric}": cost for metric, cost in last.costs.items()}
    if last.divergence is not None:
        out |= {"divergence/measured": last.divergence, "divergence/stderr": last.stderr}
    if "predicted" in last.attrs:
        out["divergence/predicted"] = float(last.attrs["predicted"][1])
    for eps in study.problem.eps:
        best = study.incumbent(eps, trials)
        if best is not None:
            out[f"incumbent_{study.problem.objective}/eps {exact(eps)}"] = best.costs[study.problem.objective]
    return out


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(f"logging to TensorBoard needs its package ({error}); pip install 'stage-nas[tensorboard]'") from error
        self._writer: Any = SummaryWriter(str(folder))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, set up by its own environment variables."""

    def __init__(self, folder: Path) -> None:
        wandb = _package("wandb")
        with _starting("wandb"):
            self._run = wandb.init(project="stage-nas", name=folder.parent.name, dir=str(folder))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({**scalars, "step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, set up by its own environment variables."""

    def __init__(self, folder: Path) -> None:
        self._mlflow = _package("mlflow")
        with _starting("mlflow"):
            self._mlflow.start_run(run_name=folder.parent.name)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics({re.sub(r"[^\w./:-]", "_", name): value for name, value in scalars.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


LOGGERS: "Registry[Callable[[Path], Sink]]" = Registry(
    "logger",
    "nas.loggers",
    {"tensorboard": "nas.loggers:TensorBoard", "wandb": "nas.loggers:WeightsAndBiases", "mlflow": "nas.loggers:MLflow"},
    {"tensorboard": "event files in RUN/logs; needs 'stage-nas[tensorboard]'", "wandb": "needs the package wandb", "mlflow": "needs the package mlflow"},
)


@contextmanager
def open_sinks(names: Sequence[str], folder: Path) -> Iterator[list[Sink]]:
    """The sinks of these names, which write to the folder; closed at the end."""
    sinks = [LOGGERS.get(name)(folder) for name in names]
    try:
        yield sinks
    finally:
        for sink in sinks:
            sink.close()


def logger(name: str, folder: Path) -> Callback:
    """The callback that logs to a sink by its name."""
    return ScalarLogger(LOGGERS.get(name)(folder))


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"logging to {name} needs its package; pip install {name}") from error


@contextmanager
def _starting(name: str) -> Iterator[None]:
    """One line for whatever a package raises about its own set-up: no key, no server, another kind of store."""
    try:
        yield
    except Exception as error:
        raise InputError(f"logging to {name} could not start: {error}; set {name} up by its own environment variables, or leave --log out") from error
