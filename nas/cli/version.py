"""`nas version`: what is installed, as a report of a bug needs it."""

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from nas.cli import options
from nas.cli.console import out, print_json

PACKAGES = ("stage-nas", "torch", "numpy", "diffusers", "transformers", "botorch", "gpytorch", "optuna")


def version(json: options.Json = False) -> None:
    """Print the versions of this package, of Python, and of what results depend on; imports none of them."""
    found = {name: _installed(name) for name in PACKAGES[:1]} | {"python": platform.python_version()} | {name: _installed(name) for name in PACKAGES[1:]}
    if json:
        print_json(found)
        return
    for name, number in found.items():
        out.print(f"{name} {number}", markup=False, highlight=False)


def _installed(package: str) -> str:
    try:
        return installed(package)
    except PackageNotFoundError:
        return "not installed"
