"""`nas version`: what is installed, as a report of a bug needs it."""

import platform

from nas.cli import options
from nas.cli.console import out, print_json
from nas.versions import installed

PACKAGES = ("stage-nas", "torch", "numpy", "diffusers", "transformers", "botorch", "gpytorch", "optuna")


def version(json: options.Json = False) -> None:
    """Print the versions of this package, of Python, and of what results depend on; imports none of them."""
    found = {name: installed(name) for name in PACKAGES[:1]} | {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES[1:]}
    if json:
        print_json(found)
        return
    for name, number in found.items():
        out.print(f"{name} {number}", highlight=False)
