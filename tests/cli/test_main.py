"""Dispatch, exit codes, and one message for every kind of failure."""

import errno
import os
import subprocess
import sys

import pytest

from scanfield.cli import catalogue
from scanfield.cli.main import COMMANDS, main
from scanfield.errors import InputError, MissingExtra, ScanfieldError


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_every_command(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: scanfield {name}")
    assert max(map(len, text.splitlines())) <= 110


def test_unknown_commands_name_the_nearest(capsys):
    assert main(["reconstrct"]) == 2
    assert "unknown command 'reconstrct' (did you mean 'reconstruct'?)" in capsys.readouterr().err


class CudaError(RuntimeError):
    pass


CudaError.__name__ = "OutOfMemoryError"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("wrong", where="a.npz", fix="try b"), 2, "scanfield: wrong\n  where: a.npz\n  fix:   try b\n"),
        (MissingExtra("pydicom", "dicom", "reading DICOM"), 2, "pip install 'scanfield[dicom]'"),
        (ScanfieldError("the fit diverged"), 1, "scanfield: the fit diverged\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/log.jsonl"), 2, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/locked/log.jsonl"), 2, "where: /locked/log.jsonl"),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
        (MemoryError(), 1, "memory does not suffice"),
        (CudaError("CUDA out of memory"), 1, "memory does not suffice"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "memory does not suffice"),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 1, "scanfield: stopped\n"),
    ],
)
def test_failures_become_one_message_and_a_code(error, code, message, capsys, monkeypatch):
    def fail(argv):
        raise error

    monkeypatch.setattr(catalogue, "main", fail)
    monkeypatch.delenv("SCANFIELD_DEBUG", raising=False)
    assert main(["list"]) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield: ") == 1
    assert "Traceback" not in captured.err and captured.out == ""


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_debug_adds_the_traceback(by, capsys, monkeypatch):
    def fail(argv):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(catalogue, "main", fail)
    if by == "environment":
        monkeypatch.setenv("SCANFIELD_DEBUG", "1")
    assert main(["list", *(["--debug"] if by == "flag" else [])]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    code = "import sys; from scanfield.cli.main import main; sys.exit(main(['list']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(20)


def test_python_dash_m(capfd):
    done = subprocess.run([sys.executable, "-m", "scanfield", "cite", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("scanfield: unknown method 'nothing'")
