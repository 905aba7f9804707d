"""The `nas` command: its verbs, and one place where errors become one line and an exit code."""

import errno
import io
import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from nas.cli import (
    arena,
    best,
    blocks,
    cache,
    cascade,
    cite,
    config,
    dashboard,
    doctor,
    explain,
    models,
    plan,
    runs,
    search,
    super_resolution,
    super_resolution_training,
    tocsr,
    version,
)
from nas.cli.console import complain, err
from nas.cli.signals import Interrupted, farewell, interruptible
from nas.cli.usage import UsageProblem, asks_for_help, usage_line
from nas.errors import NasError
from nas.user_code import no_exit

app = typer.Typer(
    name="nas",
    help="Find the smallest network that still behaves like yours, by searching over block substitutions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("search")(search.search)
app.command("measure")(models.measure)
app.command("calibrate")(models.calibrate)
app.command("plan")(plan.plan)
app.add_typer(models.spaces, name="spaces")
app.add_typer(blocks.blocks, name="blocks")
app.add_typer(cache.cache, name="cache")
app.add_typer(tocsr.tocsr, name="tocsr")
tocsr.tocsr.command("upscale")(super_resolution.upscale)
tocsr.tocsr.command("evaluate")(super_resolution.evaluate)
tocsr.tocsr.command("adapt")(super_resolution_training.adapt)
tocsr.tocsr.command("distill")(super_resolution_training.distill)
tocsr.tocsr.command("run")(super_resolution_training.run)
app.command("show")(runs.show)
app.command("best")(best.best)
app.command("cascade")(cascade.cascade)
app.command("explain")(explain.explain)
app.command("dashboard")(dashboard.dashboard)
app.add_typer(config.config, name="config")
app.command("report")(runs.report)
app.command("export")(runs.export)
app.command("cite")(cite.cite)
app.command("doctor")(doctor.doctor)
app.command("compare")(arena.compare)
app.command("tabulate")(arena.tabulate)
app.command("optimizers")(arena.optimizers)
app.command("version")(version.version)


def _version(wanted: bool) -> None:
    if wanted:
        from nas.versions import installed

        typer.echo(f"stage-nas {installed('stage-nas')}")
        raise typer.Exit


_shown = {"traceback": False}
_REFUSED = (errno.EACCES, errno.ENAMETOOLONG)
"""What the system says of paths that a user has no right to, or that cannot be; it says so wherever a path is first looked at."""


def _debug(wanted: bool) -> None:
    _shown["traceback"] = wanted


@app.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
    __: Annotated[bool, typer.Option("--debug", callback=_debug, is_eager=True, help="Show the traceback of an error too.")] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Runs the command line and exits: 0 done, 2 bad input, 3 nothing feasible, 128 + number for a signal (130 Ctrl-C, 143 SIGTERM)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale without our characters costs these, not the result
    try:
        with interruptible(), no_exit():
            code = app(standalone_mode=False)
    except UsageProblem as problem:
        if asks_for_help(problem):
            problem.show()  # type: ignore[attr-defined]  # every kind of it has this
        else:
            complain(usage_line(problem))
        sys.exit(2)
    except NasError as error:
        if _shown["traceback"]:
            traceback.print_exc()
        complain(str(error))
        sys.exit(error.exit_code)
    except Interrupted as interrupt:
        err.print(farewell(interrupt.number))
        sys.exit(128 + interrupt.number)
    except BrokenPipeError:  # the reader of our output went away: `nas show RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in _REFUSED or error.filename is None:
            raise
        if _shown["traceback"]:
            traceback.print_exc()
        complain(f"cannot use '{error.filename}': {error.strerror}; give another path")
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
