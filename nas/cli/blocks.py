"""`nas blocks`: the recipes that libraries can offer, and what they fit."""

from dataclasses import fields
from typing import Annotated, Any

import typer
from rich.table import Table

from nas.cli import options
from nas.cli.console import out, print_json
from nas.cli.listing import Listing
from nas.errors import InputError

blocks = typer.Typer(cls=Listing, help="List recipes of surrogate blocks, or show one: `nas blocks low_rank`.", rich_markup_mode=None)


@blocks.command("list")
def list_blocks(json: options.Json = False) -> None:
    """List the registered recipes with what they fit; those of other packages are imported."""
    rows = [_row(name) for name in _names()]
    if json:
        print_json(rows)
        return
    table = Table("recipe", "class", "what it does", "fits")
    for row in rows:
        table.add_row(row["name"], row["class"].rpartition(".")[2], row["does"], row["fits"])
    out.print(table)
    for module in sorted({row["class"].rpartition(".")[0] for row in rows if row["class"]}):
        names = [row["class"].rpartition(".")[2] for row in rows if row["class"].rpartition(".")[0] == module]
        out.print(f"from {module} import {', '.join(names)}", soft_wrap=True)


@blocks.command("show")
def show_block(name: Annotated[str, typer.Argument(help="A name that `nas blocks` lists.")], json: options.Json = False) -> None:
    """Show a recipe: what it does, what it fits, its options."""
    from nas.names import BLOCKS

    kind = BLOCKS.get(name)
    defaults = {field.name: field.default if isinstance(field.default, int | float | str | bool) else None for field in fields(kind)}  # type: ignore[arg-type]  # recipes are dataclasses
    shown = {**_row(name), "options": defaults}
    if json:
        print_json(shown)
        return
    for key, value in shown.items():
        text = ", ".join(f"{option}={default}" for option, default in value.items()) if isinstance(value, dict) else value
        out.print(f"{key}: {text or 'none'}", soft_wrap=True)
    module, _, class_name = shown["class"].rpartition(".")
    given = ", ".join(str(default) for default in defaults.values() if default is not None)
    out.print(f"use: from {module} import {class_name}; {class_name}({given or '...' * bool(defaults)})", soft_wrap=True)


def _names() -> list[str]:
    from nas.names import BLOCKS

    return BLOCKS.names()


def _row(name: str) -> dict[str, Any]:
    from nas.blocks.catalogue import CATALOGUE
    from nas.names import BLOCKS

    entry = next((entry for entry in CATALOGUE if entry.name == name), None)
    if entry is not None:
        return {"name": name, "does": entry.does, "fits": entry.fits, "class": entry.target.replace(":", ".")}
    try:
        kind = BLOCKS.get(name)
    except InputError as error:
        return {"name": name, "does": f"cannot be loaded: {error}", "fits": "", "class": ""}
    does = kind.does or (kind.__doc__ or "").strip().partition("\n")[0]
    return {"name": name, "does": does, "fits": kind.fits, "class": f"{kind.__module__}.{kind.__name__}"}
