"""One line for a command line that cannot be read: which verb, what is wrong, what was given, the nearest name."""

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import typer

from nas.arguments import shown
from nas.cli.options import CONFIGURED
from nas.errors import did_you_mean

UsageProblem: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises for all of them; typer exports only the kinds below it, and has moved it between versions."""


def asks_for_help(problem: Exception) -> bool:
    """Whether a command was given nothing at all, so that its help is the answer."""
    return type(problem).__name__ == "NoArgsIsHelpError"


def usage_line(problem: Any, arguments: Sequence[str] | None = None) -> str:
    """What was wrong with the arguments, by default this process', as one line."""
    context, command, message = problem.ctx, problem.ctx.command_path if problem.ctx else "nas", str(problem.format_message())
    if hasattr(problem, "option_name") and hasattr(problem, "possibilities"):
        known = [name for parameter in context.command.params for name in getattr(parameter, "opts", ())] if context else []
        message = f"no option {problem.option_name}{did_you_mean(problem.option_name, [name for name in known if name.startswith('--')])}"
    elif hasattr(getattr(context, "command", None), "commands") and message.startswith("No such command"):
        wanted = message.split("'")[1]
        message = f"no verb '{wanted}'{did_you_mean(wanted, context.command.commands)}"
    elif place := _configured(problem):
        return f"{place}: {problem.message}"
    else:
        message = message[:1].lower() + message[1:].rstrip(".") + _given(getattr(problem, "param", None), sys.argv[1:] if arguments is None else arguments)
    return f"{command}: {message}; `{command} --help` says more"


def _configured(problem: Any) -> str:
    """File, table and key of a value that came from a configuration file; nothing for one of the command line."""
    parameter, context = getattr(problem, "param", None), problem.ctx
    if context is None or parameter is None or CONFIGURED not in context.meta or parameter.name not in (context.default_map or {}):
        return ""
    if getattr(context.get_parameter_source(parameter.name), "name", "") != "DEFAULT_MAP":
        return ""
    path, table = context.meta[CONFIGURED]
    return f"configuration {path}: [{table}] {parameter.name.replace('_', '-')} = {shown(context.default_map[parameter.name])}"


def _given(parameter: Any, arguments: Sequence[str]) -> str:
    """What the arguments say for an option that could not be read; nothing for one that is missing."""
    names = tuple(getattr(parameter, "opts", ()))
    after = [value for name, value in itertools.pairwise(arguments) if name in names]
    joined = [word.partition("=")[2] for word in arguments if "=" in word and word.partition("=")[0] in names]
    values = ", ".join(f"'{value}'" for value in (*after, *joined))
    return f", got {values}" if values else ""
