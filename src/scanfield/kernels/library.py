"""The C++ library behind the `cpu` backend: found, loaded, and told which threads to use.

It is built when the package is (one shared library per instruction set, from the sources in `native/`) and loaded with
ctypes, so it depends on no version of torch or Python. Work is spread over torch's own OpenMP threads where torch has
them, so both never compete for processors, and `torch.set_num_threads` holds for both.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import sys
from pathlib import Path

import torch

# Best first, by what torch reports about this processor.
_INSTRUCTION_SETS = {"AVX512": ("avx512", "avx2", "base"), "AVX2": ("avx2", "base")}
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


def folder() -> Path:
    """Where the built libraries are."""
    return Path(str(importlib.resources.files("scanfield.kernels"))) / "lib"


def built() -> list[str]:
    """Instruction sets this installation has a library for."""
    return sorted(path.stem.removeprefix("libscanfield-") for path in folder().glob(f"libscanfield-*{_SUFFIX}"))


@functools.cache
def chosen() -> str | None:
    """The best instruction set this processor and this installation share."""
    order = _INSTRUCTION_SETS.get(torch.backends.cpu.get_cpu_capability(), ("base",))
    return next((name for name in order if name in built()), None)


@functools.cache
def missing() -> str | None:
    """Why there is no library, or None."""
    if not built():
        return "this installation was made without a C++ compiler, so its kernels were not built"
    try:
        load()
    except OSError as error:
        return f"the kernels cannot be loaded: {error}"
    return None


def describe() -> str:
    """One line for people: instruction set and threads."""
    return f"C++ kernels, {chosen()}, {torch.get_num_threads()} threads"


@functools.cache
def load(instruction_set: str | None = None) -> ctypes.CDLL:
    """The library, ready to run.

    Raises:
        OSError: it is not there or cannot be loaded.
    """
    name = instruction_set or chosen()
    if name is None:
        raise OSError(f"no library in {folder()}")
    lib = ctypes.CDLL(str(folder() / f"libscanfield-{name}{_SUFFIX}"))
    lib.scanfield_use_openmp.argtypes = [ctypes.c_void_p]
    lib.scanfield_use_openmp(_openmp())
    return lib


def _openmp() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that torch itself loaded."""
    for path in Path(torch.__file__).parent.joinpath("lib").glob("libgomp*.so*"):
        return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
    return None
