"""Outputs appear complete or not at all."""

import errno
import os
from pathlib import Path

import pytest

from scanfield.data.write import write_atomically
from scanfield.errors import InputError


def test_success_leaves_only_the_file(tmp_path: Path) -> None:
    with write_atomically(tmp_path / "out.nii.gz") as temporary:
        assert temporary.parent == tmp_path and temporary.name.endswith(".nii.gz")
        assert not (tmp_path / "out.nii.gz").exists()
        temporary.write_bytes(b"new")
    assert os.listdir(tmp_path) == ["out.nii.gz"]
    assert (tmp_path / "out.nii.gz").read_bytes() == b"new"


def test_the_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with write_atomically(tmp_path / "a") as temporary:
            temporary.write_bytes(b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.npz"
    target.write_bytes(b"old")
    with pytest.raises(type(error)), write_atomically(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert os.listdir(tmp_path) == ["a.npz"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("code", "word"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EIO, "input/output")]
)
def test_a_disk_that_fails_while_writing(tmp_path: Path, code: int, word: str) -> None:
    with pytest.raises(InputError, match=word), write_atomically(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(code, os.strerror(code))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_really_full_device(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="disk is full"),
        write_atomically(tmp_path / "a"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert os.listdir(tmp_path) == []


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="read-only"), write_atomically(tmp_path / "a"):
        raise AssertionError("the body must not run")


def test_errors_of_the_body_about_other_files_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_atomically(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught, write_atomically(tmp_path / "no" / "a"):
        pass
    assert "mkdir -p" in caught.value.fix


@pytest.mark.parametrize("place", ["folder", os.devnull])
def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / place
    with pytest.raises(InputError, match="not a regular file"), write_atomically(target):
        pass
    assert target.exists() and not target.is_file()


def test_a_link_keeps_pointing_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with write_atomically(tmp_path / "link") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
