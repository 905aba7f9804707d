"""Groups of two verbs, `list` and `show`, that need neither: `nas blocks` lists, `nas blocks low_rank` shows."""

import difflib
from typing import Any

from typer.core import TyperGroup


class Listing(TyperGroup):
    """A group whose bare form lists, and which shows what is named unless the name is, or nearly is, a verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments with the verb that was left out."""
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["list", *args]
        elif args[0] != "--help" and not difflib.get_close_matches(args[0], self.commands, cutoff=0.7):
            args = ["show", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed
