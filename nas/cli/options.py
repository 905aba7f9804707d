"""Options that several verbs share, and the configuration file that stands under all of them."""

import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from nas.cli.console import Terminal


CONFIGURED = "nas.configured"
"""Where a context notes its configuration file and the table it read."""


def configure(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the table of the verb in a TOML file the defaults of its options; the command line overrides it."""
    if path is None:
        return None
    verb = context.info_name or ""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"configuration {path} is not TOML: {error}") from error
    _check_tables(path, tables, verb, {verb, *_configurable(context.find_root().command)})
    table = tables.get(verb, {})
    known = {parameter.name: parameter for parameter in context.command.params if parameter.name and not parameter.name.startswith("_")}
    values = {}
    for name, value in table.items():
        parameter = known.get(name.replace("-", "_"))
        if parameter is None:
            raise InputError(f"configuration {path}: [{verb}] has no option '{name}'{did_you_mean(name, [key.replace('_', '-') for key in known])}")
        values[str(parameter.name)] = [value] if getattr(parameter, "multiple", False) and not isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **values}
    context.meta[CONFIGURED] = path, verb
    return path


def _check_tables(path: Path, tables: Mapping[str, Any], verb: str, verbs: Collection[str]) -> None:
    """Raises unless each name is that of a verb and holds a table."""
    for name, value in tables.items():
        if name not in verbs and isinstance(value, dict):
            raise InputError(f"configuration {path}: [{name}] is the table of no verb that takes --config{did_you_mean(name, verbs)}")
        if name not in verbs:
            raise InputError(f"configuration {path}: '{name}' stands in no table; write it below [{verb}]")
        if not isinstance(value, dict):
            raise InputError(f"configuration {path}: '{name}' must be a table [{name}], got {type(value).__name__}")


def _configurable(command: Any) -> Iterator[str]:
    """Names of all verbs below a command that take a configuration file."""
    for name, below in getattr(command, "commands", {}).items():
        if any(getattr(parameter, "callback", None) and "--config" in parameter.opts for parameter in below.params):
            yield name
        yield from _configurable(below)


Config = Annotated[
    Path | None, typer.Option("--config", callback=configure, is_eager=True, help="TOML file with a table per verb; the command line overrides it.")
]
SpaceName = Annotated[str, typer.Option("--space", help="NAME, NAME:ARGUMENT or path/to/file.py:function; `nas spaces` lists the names.")]
Teacher = Annotated[str | None, typer.Option("--teacher", help="embedded (the default), a diffusers folder, or a hub id.")]
Library = Annotated[str | None, typer.Option("--library", help="Which library of surrogate blocks.")]
Pictures = Annotated[Path | None, typer.Option("--data", help="Folder of pictures to calibrate and measure on, for a teacher that ships none.")]
Minimize = Annotated[str | None, typer.Option("--minimize", help="Cost to minimise, such as params or macs; by default params, or the only cost there is.")]
Device = Annotated[str | None, typer.Option("--device", help="Where to compute: cpu (the default), cuda, cuda:1.")]
NumericsWords = Annotated[
    str | None, typer.Option("--numerics", help="How candidates are computed: fp32 (the default), bf16 or fp16, channels_last, compile; separated by commas.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Compute threads; by default OMP_NUM_THREADS, else all cores.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes that calibrate and measure side by side; threads are divided among them.")]
TaskTimeout = Annotated[float, typer.Option("--timeout", help="Seconds after which the worker of a block or measurement counts as hung.")]
ExecutorName = Annotated[str, typer.Option("--executor", help="Where workers run: local, or ray (the extra [ray]).")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster: HOST:PORT, ray://HOST:PORT or auto; by default one is started here.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, all else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="A line for every trial: cost, divergence, what was expected.")]
Log = Annotated[list[str] | None, typer.Option("--log", help="Log to tensorboard, wandb or mlflow too; several allowed.")]
Steps = Annotated[int, typer.Option("--steps", help="Optimizer steps.")]
Batch = Annotated[int, typer.Option("--batch", help="Samples of one forward pass.")]
Accumulate = Annotated[int, typer.Option("--accumulate", help="Forward passes of a step; several GPUs (`accelerate launch`) share them.")]
Rate = Annotated[float, typer.Option("--rate", help="Learning rate.")]
Precision = Annotated[str, typer.Option("--precision", help="What forward passes are computed in: fp32, bf16 or fp16.")]
TrainingSeed = Annotated[int, typer.Option("--seed", help="Decides batches and noise.")]
Run = Annotated[Path, typer.Argument(help="Run directory, such as runs/NAME.")]


def space_options(teacher: str | None, library: str | None, data: Path | None, device: str | None, numerics: str | None = None) -> dict[str, Any]:
    """What the user said about the space, without what was left open."""
    given = {"teacher": teacher, "library": library, "data": str(data) if data else None, "device": device, "numerics": numerics}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def terminal(quiet: bool, log: list[str] | None, folder: Path) -> "Iterator[Terminal]":
    """Progress of a training: of several processes one reports, and logs into the folder."""
    from nas.cli.console import Terminal
    from nas.loggers import LOGGERS, open_sinks
    from nas.spaces.tocsr.resources import leads

    for name in log or ():
        LOGGERS.check(name)
    with open_sinks(log or () if leads() else (), folder) as sinks:
        yield Terminal(quiet or not leads(), sinks)


def set_threads(threads: int | None) -> None:
    """Fixes the number of compute threads of this process: as asked, else `OMP_NUM_THREADS`, else all cores it may use; more would cost 2 to 5 times."""
    from nas.crew import usable_cores

    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    count = threads or (int(given) if given.isdecimal() else 0) or usable_cores()
    os.environ.setdefault("OMP_NUM_THREADS", str(count))
    import torch

    torch.set_num_threads(count)
