"""replib: reproducible replications of interpretability papers."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # `replib.check` and `replib.measured`, without importing them for who needs neither
    if name in ("check", "measured"):
        from bookkit.course import checking

        return getattr(checking, name)
    raise AttributeError(f"module 'replib' has no attribute {name!r}")
