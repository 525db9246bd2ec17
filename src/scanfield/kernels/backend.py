"""Which implementation of a kernel runs.

Every kernel has the implementation `reference` in plain torch, the truth the others are tested against, and may have
`cpu` (the C++ library of this package) and `triton` (CUDA devices). A run chooses: `with using(run.backend)`. The
default, `auto`, is `cpu` on a CPU and `triton` on a CUDA device; where an installation lacks them, or a kernel cannot
take the tensors at hand (dtype, dimensions), `auto` means `reference`, and an explicit name is an error.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scanfield.errors import InputError
from scanfield.kernels import library

BACKENDS = ("auto", "reference", "cpu", "triton")
_DEVICE = {"cpu": "cpu", "triton": "cuda"}

_wanted: contextvars.ContextVar[str] = contextvars.ContextVar("scanfield_backend", default="auto")


@dataclass(frozen=True)
class Abilities:
    """What one implementation of a kernel takes.

    Args:
        dtypes: of the points or inputs.
        dims: numbers of coordinates; None for any.
    """

    dtypes: tuple[torch.dtype, ...]
    dims: tuple[int, ...] | None = None

    def take(self, x: Tensor) -> bool:
        return x.dtype in self.dtypes and (self.dims is None or x.shape[-1] in self.dims)


@dataclass(frozen=True)
class Backend:
    """A backend that can run on a device, and why it is this one."""

    name: str
    why: str


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Kernels called inside use this backend (in this thread; their backward passes too).

    Raises:
        InputError: unknown backend.
    """
    if name not in BACKENDS:
        raise InputError(f"unknown backend '{name}'", fix=f"use one of {', '.join(BACKENDS)}")
    token = _wanted.set(name)
    try:
        yield
    finally:
        _wanted.reset(token)


def backend_for(device: torch.device, wanted: str | None = None) -> Backend:
    """The backend that `wanted` (default: what `using` says) means on a device.

    Raises:
        InputError: an explicit backend cannot run there.
    """
    name, why = _resolve(device.type, wanted or _wanted.get())
    return Backend(name, why or (library.describe() if name == "cpu" else "Triton"))


def _resolve(device: str, wanted: str) -> tuple[str, str]:
    """The name of the backend, and why it is the reference where it is."""
    if wanted == "reference":
        return "reference", "asked for"
    name = {"cpu": "cpu", "cuda": "triton"}.get(device) if wanted == "auto" else wanted
    if name is None:
        return "reference", f"there are no kernels for {device} devices"
    if _DEVICE[name] != device and not (name == "triton" and _interpreting()):
        raise InputError(f"the backend '{name}' does not run on {device} devices", fix="use auto or reference")
    missing = library.missing() if name == "cpu" else _triton_missing()
    if missing is None:
        return name, ""
    if wanted == "auto":
        return "reference", missing
    raise InputError(f"the backend '{name}' cannot run: {missing}", fix="use auto or reference")


def choose(abilities: Mapping[str, Abilities], x: Tensor, fits: Callable[[str], bool] = lambda name: True) -> str:
    """Name of the implementation to call for the input x, from those a kernel has.

    Args:
        fits: whether an implementation also takes the rest of the input, such as a network's shape.

    Raises:
        InputError: an explicit backend was asked for and cannot take x.
    """
    name, wanted = _here(x.device.type)
    if name == "reference" or (name in abilities and abilities[name].take(x) and fits(name)):
        return name
    if wanted == "auto":
        return "reference"
    raise InputError(
        f"the backend '{name}' cannot take this input ({x.dtype}, {x.shape[-1]} columns)", fix="use auto or reference"
    )


def _here(device: str) -> tuple[str, str]:
    """The backend that runs here and now, and the one asked for.

    torch.func's transformations (vmap, jacrev, ...) take no custom operator that has derivatives: reference.
    """
    wanted = _wanted.get()
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "reference", wanted
    return _resolve(device, wanted)[0], wanted


# A graph of torch.compile keeps the backend it was traced with. (torch.compiler.assume_constant_result sets this
# attribute, too, but imports the compiler, which takes seconds.)
_here._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _interpreting() -> bool:
    """Triton's interpreter runs its kernels on CPU tensors."""
    if _triton_missing() is not None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None
