"""Shared defences of the readers: errors that name the file, and sizes checked before memory is taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scanfield.errors import InputError, MissingExtra


@contextmanager
def located(source: str | Path) -> Iterator[None]:
    """Puts the file's name in front of the `where` of any `InputError` raised inside."""
    try:
        yield
    except InputError as error:
        name = str(source)
        if error.where.startswith(name) or isinstance(error, MissingExtra):
            raise
        where = f"{name}: {error.where}" if error.where else name
        raise InputError(error.what, where=where, fix=error.fix) from error


def existing_file(path: str | Path) -> Path:
    """`path` as a readable file, or an `InputError`."""
    found = Path(path)
    if not found.exists():
        raise InputError("there is no such file", where=str(path), fix="check the path")
    if not found.is_file():
        raise InputError("a file is expected here, this is none", where=str(path))
    try:
        with found.open("rb"):
            return found
    except OSError as error:
        raise InputError(f"the file cannot be opened: {error.strerror}", where=str(path)) from error


def check_memory(needed_bytes: int, source: str | Path) -> None:
    """Refuses data that could not fit into this machine's memory, before any of it is read."""
    limit = _physical_memory()
    if needed_bytes > limit:
        raise InputError(
            f"the header describes data that need {needed_bytes / 2**30:.4g} GiB of memory; "
            f"this machine has {limit / 2**30:.4g} GiB",
            where=str(source),
            fix="crop or downsample the data, or check whether the file's header is damaged",
        )


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # platforms without sysconf
        return 16 * 2**30
