"""Shared defences of the readers."""

from pathlib import Path

import pytest

from scanfield.data.guard import check_memory, existing_file, located
from scanfield.errors import InputError


def test_located_names_the_file_once() -> None:
    with pytest.raises(InputError) as caught, located("scan.npz"), located("scan.npz"):
        raise InputError("no angles", where="geometry.angles_deg", fix="add them")
    assert caught.value.where == "scan.npz: geometry.angles_deg"
    assert (caught.value.what, caught.value.fix) == ("no angles", "add them")


def test_located_without_a_place() -> None:
    with pytest.raises(InputError) as caught, located(Path("scan.npz")):
        raise InputError("broken")
    assert caught.value.where == "scan.npz"


def test_existing_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert existing_file(tmp_path / "a") == tmp_path / "a"
    with pytest.raises(InputError, match="no such file"):
        existing_file(tmp_path / "b")
    with pytest.raises(InputError, match="this is none"):
        existing_file(tmp_path)


def test_memory() -> None:
    check_memory(2**20, "a")
    with pytest.raises(InputError, match="GiB of memory"):
        check_memory(2**60, "a")
