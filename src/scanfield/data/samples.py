"""The small real scans that ship with the package; `files/CREDITS.md` says where they come from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.errors import InputError, nearest

_SUFFIX = ".nii.gz"


def sample_names() -> list[str]:
    """Names of all packaged scans."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in _folder().glob(f"*{_SUFFIX}"))


def sample_path(name: str) -> Path:
    """The NIfTI file of a packaged scan.

    Raises:
        InputError: there is no scan of this name; the nearest one is suggested.
    """
    names = sample_names()
    if name not in names:
        raise InputError(
            f"there is no packaged scan '{name}'{nearest(name, names)}", fix=f"choose one of {', '.join(names)}"
        )
    return _folder() / f"{name}{_SUFFIX}"


def sample(name: str) -> Scan:
    """A packaged scan, read."""
    return read_nifti(sample_path(name))


def _folder() -> Path:
    return Path(str(files("scanfield.data") / "files"))
