"""`nas doctor`: whether a run directory is sound."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from nas.cli import options
from nas.cli.console import out, print_json
from nas.home import nas_home


def doctor(
    run: options.Run,
    repair: Annotated[bool, typer.Option("--repair", help="Keep what can be read, and move damaged files aside; nothing is removed.")] = False,
    json: options.Json = False,
) -> None:
    """Verify the record, the winners and the blocks of a run against their hashes; exit code 2 if something is damaged."""
    from nas.doctor import examine
    from nas.run_directory import RunDirectory

    findings = examine(RunDirectory.open(run, to_repair=True), nas_home() / "blocks", repair=repair)
    repaired = {finding.what for finding in findings if finding.state == "repaired"}
    sound = all(finding.state != "damaged" or finding.what in repaired for finding in findings)
    if json:
        print_json({"run": str(run), "sound": sound, "findings": [finding.to_json() for finding in findings]})
    else:
        table = Table("what", "state", "detail", box=None, pad_edge=False)
        for finding in findings:
            table.add_row(Text(finding.what), finding.state, Text(finding.detail, overflow="fold"))
        out.print(table)
    if not sound:
        raise typer.Exit(2)
