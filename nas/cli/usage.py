"""One line for a command line that cannot be read: which verb, what is wrong, what was given, the nearest name."""

import itertools
import re
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
    words = sys.argv[1:] if arguments is None else arguments
    context, command, message = problem.ctx, problem.ctx.command_path if problem.ctx else "nas", str(problem.format_message())
    if hasattr(problem, "option_name") and hasattr(problem, "possibilities"):
        message = _no_option(problem.option_name, context, words)
    elif hasattr(getattr(context, "command", None), "commands") and message.startswith("No such command"):
        wanted = message.split("'")[1]
        message = f"no verb '{wanted}'{did_you_mean(wanted, context.command.commands)}"
    elif place := _configured(problem):
        return f"{place}: {problem.message}"
    else:
        parameter = getattr(problem, "param", None)
        message = message[:1].lower() + message[1:].rstrip(".") + _given(parameter, words)
        message += _comma(parameter, message)
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


def _no_option(option: str, context: Any, words: Sequence[str]) -> str:
    if verb := _verb_that_takes(option, getattr(context, "command", None), words):
        return f"{option} belongs after the verb: {context.command_path} {verb} {option}"
    known = _options(context.command) if context else []
    return f"no option {option}{did_you_mean(option, [name for name in known if name.startswith('--')])}"


def _options(command: Any) -> list[str]:
    return [name for parameter in command.params for name in getattr(parameter, "opts", ())]


def _verb_that_takes(option: str, command: Any, words: Sequence[str]) -> str:
    """A verb below a command that knows the option, one of those that were given first; empty if there is none."""
    below = getattr(command, "commands", {})
    for name in sorted(below, key=lambda name: name not in words):
        if option in _options(below[name]):
            return str(name)
        if found := _verb_that_takes(option, below[name], words):
            return f"{name} {found}"
    return ""


def _given(parameter: Any, arguments: Sequence[str]) -> str:
    """What the arguments say for an option that could not be read; nothing for one that is missing."""
    names = tuple(getattr(parameter, "opts", ()))
    after = [value for name, value in itertools.pairwise(arguments) if name in names]
    joined = [word.partition("=")[2] for word in arguments if "=" in word and word.partition("=")[0] in names]
    values = ", ".join(f"'{value}'" for value in (*after, *joined))
    return f", got {values}" if values else ""


def _comma(parameter: Any, message: str) -> str:
    """What to write where a number that may have a fraction was given with a comma."""
    found = None if "integer" in message else re.search(r"got '([\d.eE+-]+(?:,[\d.eE+-]+)+)'", message)
    if found is None:
        return ""
    if re.fullmatch(r"\d+,\d+", found[1]):
        return f"; write a decimal point: {found[1].replace(',', '.')}"
    option = parameter.opts[0]
    return f"; repeat {option} for several: {' '.join(f'{option} {part}' for part in found[1].split(','))}" if parameter.multiple else ""
