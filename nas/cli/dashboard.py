"""`nas dashboard`: a run in optuna-dashboard."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli import options
from nas.cli.console import err
from nas.errors import InputError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

REFRESH_S = 5.0


def dashboard(
    run: options.Run,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8080,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; other machines reach it only if you say so.")] = "127.0.0.1",
) -> None:
    """Open a run in optuna-dashboard, one study for each eps; a run under way is followed. Ctrl-C ends it."""
    from nas.findings import read_run

    findings = read_run(run)
    try:
        import optuna
        from optuna_dashboard import run_server
    except ImportError as error:
        raise InputError(f"the dashboard needs optuna-dashboard ({error}); pip install 'stage-nas[dashboard]'") from error
    from nas.dashboard import mirror

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    mirror(findings, storage)
    for line in findings.missing:
        err.print(line)
    over = threading.Event()
    threading.Thread(target=_follow, args=(run, storage, over), daemon=True).start()
    err.print(f"dashboard of {run} at http://{host}:{port} (Ctrl-C ends it)")
    try:
        run_server(storage, host=host, port=port)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}; give another --port") from error
    finally:
        over.set()


def _follow(run: Path, storage: "BaseStorage", over: threading.Event) -> None:
    """Adds new trials until the server ends."""
    from nas.dashboard import mirror
    from nas.errors import NasError
    from nas.findings import read_run

    while not over.wait(REFRESH_S):
        try:
            mirror(read_run(run), storage)
        except NasError:  # moved or locked for a moment: the next look may succeed
            continue
