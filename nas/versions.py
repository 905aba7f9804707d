"""Versions of packages, imported or not."""

from importlib.metadata import PackageNotFoundError, version


def installed(package: str) -> str:
    """The version of a package, "not installed" without one: this package too, where its sources are merely on the path.

    >>> installed("no-such-package")
    'not installed'
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
