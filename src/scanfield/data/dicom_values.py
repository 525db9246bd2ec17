"""What the readers and writers of radiotherapy objects share: numbers in DICOM data sets, and errors that name them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scanfield.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from pydicom import Dataset

FLIP_XY = np.diag([-1.0, -1.0, 1.0])  # LPS <-> RAS


def pydicom_for(purpose: str) -> None:
    """Raises `MissingExtra` where pydicom is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise MissingExtra("pydicom", "dicom", purpose) from error


def numbers(data: Dataset, name: str, count: int) -> np.ndarray:
    """An attribute of `count` finite numbers.

    Raises:
        InputError: it is missing, or holds something else.
    """
    value: Any = data.get(name)
    try:
        found = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise InputError(
            f"the attribute {name} must hold {count} finite numbers, got {str(value)[:80]}",
            where=name,
            fix="export the object again",
        )
    return found


def decimal(value: float) -> str:
    """A number as a DICOM decimal string, of at most 16 characters."""
    for digits in range(12, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return "0" if float(text) == 0 else text
    raise ValueError(f"{value} has no decimal string of 16 characters")


@contextmanager
def parsing() -> Iterator[None]:
    """pydicom converts values lazily and raises almost anything on damaged files: one error for all of it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = "".join(c if c.isprintable() else "?" for c in str(error))[:160]
        raise InputError(f"the file is truncated or damaged: {text}", fix="copy or export it again") from error
