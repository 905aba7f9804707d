"""Compress big pretrained networks by searching over block substitutions."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.job import search as search

__all__ = ["__version__", "search"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`nas.search` at first use, so that `import nas` loads nothing else."""
    if name == "search":
        from nas.job import search

        return search
    raise AttributeError(f"module 'nas' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
