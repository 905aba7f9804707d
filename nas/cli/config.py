"""`nas config show`: which value every option has, and where it comes from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli import options
from nas.cli.console import err, out, print_json
from nas.errors import InputError, did_you_mean

config = typer.Typer(help="Show the configuration of a verb or of a run.", no_args_is_help=True, rich_markup_mode=None)


@config.callback()
def _config() -> None:
    """Without this, the only verb would swallow its name."""


@config.command("show")
def show(
    context: typer.Context,
    source: Annotated[Path | None, typer.Argument(help="A configuration file, or a run directory; the defaults without one.")] = None,
    verb: Annotated[str, typer.Option("--verb", help="Whose options to show.")] = "search",
    json: options.Json = False,
) -> None:
    """Show the options of a verb with their defaults under a file's values, as a file that --config takes; of a run, what it was made with."""
    if source is not None and source.is_dir():
        from nas.findings import read_config

        found, lost = read_config(source)
        for line in lost:
            err.print(line)
    else:
        if source is not None and not source.exists():
            known = f"a TOML file with a table [{verb}], a run directory such as runs/NAME, or nothing for the defaults"
            raise InputError(f"no configuration '{source}'; give {known}")
        found = {verb: resolved(context, verb, source)}
    if json:
        print_json(found)
    else:
        from nas.run_directory import to_toml

        out.print(to_toml(found).rstrip(), soft_wrap=True)


def resolved(context: typer.Context, verb: str, file: Path | None) -> dict[str, Any]:
    """Option -> value; options without a value are left out."""
    verbs: dict[str, Any] = getattr(context.find_root().command, "commands", {})
    if verb not in verbs:
        raise InputError(f"unknown verb '{verb}'{did_you_mean(verb, verbs)}")
    command = verbs[verb]
    fresh = type(context)(command, parent=context.find_root(), info_name=verb)
    if file is not None:
        options.configure(fresh, file)
    defaults = {parameter.name: parameter.default for parameter in command.params if parameter.name not in ("help", "_", "json") and not parameter.required}
    values = {name: (fresh.default_map or {}).get(name, default) for name, default in defaults.items()}
    stated = {name: value for name, value in values.items() if value is not None and value is not False and value != []}
    return {name.replace("_", "-"): str(value) if isinstance(value, Path) else value for name, value in stated.items()}
