"""Non-uniform transforms on the CPU by finufft (Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput. 41:C479-C504,
2019), with plans that are kept.

A plan holds the sorted samples of one trajectory and its oversampled grid. Iterations transform with the same
trajectories again and again, so plans are looked up by the trajectory's bytes; the least recently used are dropped.

Single precision uses an oversampling of 1.25: an error of 2e-5 instead of 5e-6, far below the noise of any receiver,
for a fifth to a twentieth of the time. Threads share the images of a batch, never one image: the same bits every time.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from scanfield.errors import MissingExtra

ACCURACY = {torch.complex64: (1e-5, 1.25), torch.complex128: (1e-13, 2.0)}
"""(tolerance asked of finufft, oversampling of its grid)."""
KEPT_BYTES = 2**28
"""Plans whose estimated memory is together below this are kept."""


def type2(
    image: Complex[Tensor, "batch *voxels"], frequency: Float[Tensor, "samples d"]
) -> Complex[Tensor, "batch samples"]:
    """sum_i m_i exp(-i w_j . r_i); `voxels` are the d axes of `frequency`, one to three.

    Raises:
        MissingExtra: finufft is not installed.
    """
    return _execute(2, image, frequency, tuple(image.shape[1:]))


def type1(
    values: Complex[Tensor, "batch samples"], frequency: Float[Tensor, "samples d"], voxels: tuple[int, ...]
) -> Complex[Tensor, "batch *voxels"]:
    """sum_j s_j exp(+i w_j . r_i), the adjoint of `type2`.

    Raises:
        MissingExtra: finufft is not installed.
    """
    return _execute(1, values, frequency, voxels)


class Plans:
    """Plans by key, the least recently used dropped beyond `limit` bytes; `held_bytes` are held.

    A plan is taken out while it is used: two threads never execute the same one.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held_bytes = limit, 0
        self._held: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: Any) -> Any | None:
        """The plan under `key`, which is then no longer held; None where there is none."""
        with self._lock:
            plan, size = self._held.pop(key, (None, 0))
            self.held_bytes -= size
        return plan

    def keep(self, key: Any, plan: Any, size: int) -> None:
        """Holds a plan of `size` bytes until others need its place."""
        with self._lock:
            _, before = self._held.pop(key, (None, 0))
            self._held[key] = (plan, size)
            self.held_bytes += size - before
            while self.held_bytes > self.limit:
                _, (_, dropped) = self._held.popitem(last=False)
                self.held_bytes -= dropped


PLANS = Plans(KEPT_BYTES)


def installed() -> bool:
    """Whether finufft can be imported."""
    try:
        _finufft()
    except MissingExtra:
        return False
    return True


def _execute(kind: int, source: Tensor, frequency: Tensor, voxels: tuple[int, ...]) -> Tensor:
    data = source.detach().resolve_conj().contiguous().numpy()
    points = frequency.detach().contiguous().numpy()
    threads = min(torch.get_num_threads(), len(data))
    digest = hashlib.blake2b(points.data, digest_size=16).digest()
    key = (kind, digest, points.shape, voxels, len(data), source.dtype, threads)
    plan = PLANS.take(key) or _plan(kind, points, voxels, len(data), source.dtype, threads)
    found = torch.from_numpy(plan.execute(data))
    _, oversampling = ACCURACY[source.dtype]
    grid = math.prod(oversampling * n for n in voxels) * threads * data.itemsize
    PLANS.keep(key, plan, round(grid) + points.nbytes + 8 * len(points))
    return found.reshape(len(data), *(voxels if kind == 1 else (len(points),)))


def _plan(kind: int, points: np.ndarray, voxels: tuple[int, ...], batch: int, dtype: torch.dtype, threads: int) -> Any:
    tolerance, oversampling = ACCURACY[dtype]
    plan = _finufft().Plan(
        kind,
        voxels,
        n_trans=batch,
        eps=tolerance,
        isign=1 if kind == 1 else -1,
        dtype=str(dtype).removeprefix("torch."),
        nthreads=threads,
        upsampfac=oversampling,
        spread_thread=2,  # images side by side: threads within one image would add in any order
        showwarn=0,
    )
    plan.setpts(*(np.ascontiguousarray(points[:, a]) for a in range(points.shape[1])))
    return plan


def _finufft() -> ModuleType:
    try:
        import finufft
    except ImportError:
        raise MissingExtra("finufft", "mri", "a non-Cartesian Fourier transform of this size") from None
    return finufft
