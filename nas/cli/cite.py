"""`nas cite`: BibTeX of what a search stands on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli import options
from nas.cli.console import err, out, print_json


def cite(
    run: Annotated[Path | None, typer.Argument(help="Run directory; without one, what the default search uses.")] = None,
    json: options.Json = False,
) -> None:
    """Print what to cite for the toolkit, or for a run's optimizer and space, as BibTeX."""
    from nas.citation import ENTRIES, bibtex, keys

    config: dict[str, dict[str, Any]] = {}
    if run is not None:
        from nas.findings import read_config

        config, lost = read_config(run)
        for line in lost:
            err.print(line)
    wanted = keys(config.get("search", {}).get("optimizer"), config.get("space", {}).get("name"))
    if json:
        print_json([{"key": key, "bibtex": ENTRIES[key]} for key in wanted])
    else:
        out.print(bibtex(wanted), soft_wrap=True)
