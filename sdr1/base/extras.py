"""Libraries that a part of sdr1 needs alone, and the extra that installs each."""

from __future__ import annotations

from importlib.util import find_spec

from sdr1.base.errors import UserError

EXTRAS = {
    "nudenet": "evaluation",
    "scipy": "evaluation",
    "torchmetrics": "evaluation",
    "umap": "evaluation",
    "jinja2": "report",
    "matplotlib": "report",
    "mlflow": "tracking",
    "hpsv2": "hps",
    "datasets": "hub",
    "s3fs": "s3",
}
"""By the name that is imported."""


def missing(library: str, place: str) -> UserError | None:
    """The line that says which extra installs a library, None where none does; `place` is what needs it."""
    package = library.partition(".")[0]
    if package not in EXTRAS:
        return None
    return UserError(f"{place}: needs {package}; pip install 'sdr1[{EXTRAS[package]}]'")


def require(library: str, place: str) -> None:
    """Raise UserError where a library of an extra is not installed; nothing is imported."""
    told = missing(library, place)
    if told is not None and find_spec(library) is None:
        raise told
