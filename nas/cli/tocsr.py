"""`nas tocsr`: the steps of the reference system besides its search."""

import typer

app = typer.Typer(help="TOC-SR: the steps besides the search.", no_args_is_help=True, rich_markup_mode=None)
