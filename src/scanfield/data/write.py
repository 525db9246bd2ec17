"""Output files appear only when they are complete: write to a temporary sibling, then rename."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scanfield.errors import InputError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, or write to another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or write to another disk"),
    errno.EROFS: ("the file system is read-only", "choose an output folder you can write to"),
    errno.EACCES: ("permission denied", "choose an output folder you can write to"),
    errno.EPERM: ("permission denied", "choose an output folder you can write to"),
    errno.EFBIG: ("the file is larger than the file system allows", "write to another disk"),
    errno.EIO: ("the disk reports an input/output error", "write to another disk"),
    errno.ENAMETOOLONG: ("the file name is too long", "choose a shorter name"),
}


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to the disk and renamed to `path`.

    The temporary name keeps the suffixes (`.nii.gz`), because many writers choose the format by them. If the body
    raises, also on Ctrl-C, the temporary file is deleted and an existing `path` stays as it was.

    Raises:
        InputError: `path` is no place for a file, its folder does not exist or cannot be written to, or the disk
            fills up while the body writes.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise InputError(
            f"the folder '{target.parent}' does not exist", where=str(path), fix=f"mkdir -p '{target.parent}'"
        )
    if target.exists() and not target.is_file():
        raise InputError("this path exists and is not a regular file", where=str(path), fix="choose another file name")
    suffixes = "".join(target.suffixes[-2:])
    temporary = target.with_name(f".{target.name.removesuffix(suffixes)}.{secrets.token_hex(4)}.part{suffixes}")
    try:
        # Not tempfile: its files are private (0600), an output follows the user's umask.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        ours = error.filename is None or Path(os.fsdecode(error.filename)) == temporary
        if ours and error.errno in _REASONS:
            reason, fix = _REASONS[error.errno]
            raise InputError(f"cannot write: {reason}", where=str(path), fix=fix) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def new_folder(name: str, *, replaced: bool = False, fix: str = "choose another name") -> Path:
    """The folder that a command writes into.

    Args:
        replaced: whether a run that it holds may be written over; nothing else may.

    Raises:
        InputError: it holds something, and is not to be replaced.
    """
    folder = Path(name)
    if replaced and (folder / "run.json").is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("the output is a new or empty folder", where=name, fix=fix)
    return folder


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[None]:
    """Removes a folder that is made inside if that does not come to its end, where nothing could continue it."""
    new = not folder.exists()
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
