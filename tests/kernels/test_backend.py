"""Who decides which implementation runs, and what happens where it cannot."""

from __future__ import annotations

import threading

import pytest
import torch

from scanfield.errors import InputError
from scanfield.kernels import backend, library
from scanfield.kernels.backend import Abilities, backend_for, choose, using

CPU = torch.device("cpu")
BUILT = library.missing() is None


def test_auto_takes_the_device_s_own_backend():
    assert backend_for(CPU).name == ("cpu" if BUILT else "reference")
    assert backend_for(torch.device("meta")).name == "reference"


def test_an_unknown_or_impossible_backend_is_refused():
    with pytest.raises(InputError, match="unknown backend 'fast'"), using("fast"):
        pass
    with pytest.raises(InputError, match="does not run on cuda devices"):
        backend_for(torch.device("cuda"), "cpu")


def test_using_holds_inside_in_this_thread_and_is_undone():
    seen = []
    with using("reference"):
        assert backend_for(CPU).name == "reference"
        other = threading.Thread(target=lambda: seen.append(backend_for(CPU).name))
        other.start()
        other.join()
        with using("auto"):
            assert backend_for(CPU).name == seen[0]
        assert backend_for(CPU).name == "reference"
    assert backend_for(CPU).name == seen[0]


@pytest.mark.skipif(not BUILT, reason="the kernels were not built")
def test_what_a_kernel_cannot_take_goes_to_the_reference_or_is_an_error():
    abilities = {"cpu": Abilities((torch.float32,), dims=(2, 3))}
    assert choose(abilities, torch.zeros(5, 3)) == "cpu"
    assert choose(abilities, torch.zeros(5, 4)) == "reference"
    assert choose(abilities, torch.zeros(5, 3, dtype=torch.float64)) == "reference"
    assert choose({}, torch.zeros(5, 3)) == "reference"
    assert choose(abilities, torch.zeros(5, 3), lambda name: name != "cpu") == "reference"
    with using("cpu"), pytest.raises(InputError, match=r"cannot take this input \(torch\.float64, 3 columns\)"):
        choose(abilities, torch.zeros(5, 3, dtype=torch.float64))


def test_without_a_library_auto_falls_back_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "folder", lambda: tmp_path)
    for cached in (library.chosen, library.missing, library.load):
        cached.cache_clear()
    try:
        found = backend_for(CPU)
        assert found.name == "reference" and "without a C++ compiler" in found.why
        with pytest.raises(InputError, match="the backend 'cpu' cannot run: this installation was made without"):
            backend_for(CPU, "cpu")
    finally:
        monkeypatch.undo()
        for cached in (library.chosen, library.missing, library.load):
            cached.cache_clear()


def test_a_damaged_library_is_a_reason_not_a_crash(monkeypatch, tmp_path):
    name = library.built()[0] if BUILT else "base"
    suffix = library._SUFFIX
    for instruction_set in {name, "base"}:
        (tmp_path / f"libscanfield-{instruction_set}{suffix}").write_bytes(b"not a library")
    monkeypatch.setattr(library, "folder", lambda: tmp_path)
    for cached in (library.chosen, library.missing, library.load):
        cached.cache_clear()
    try:
        assert "cannot be loaded" in backend_for(CPU).why
    finally:
        monkeypatch.undo()
        for cached in (library.chosen, library.missing, library.load):
            cached.cache_clear()


@pytest.mark.skipif(not BUILT, reason="the kernels were not built")
def test_kernels_share_torch_s_own_threads():
    assert library._openmp() is not None or not torch.backends.openmp.is_available()


def test_the_names_on_the_command_line_are_these():
    assert backend.BACKENDS == ("auto", "reference", "cpu", "triton")
