"""How much of what changed since an earlier image a result shows.

Notation: p the earlier (prior) image, r the reference now, x the result; C the changed voxels.

    recovered = <x - p, r - p> / <r - p, r - p> over C       0: still the prior; 1: all of the change

C is the smallest set of voxels that holds `SHARE` of the squared change. Noise of x that knows nothing of the change
does not move the mean of the quotient, so it says nothing about quality: read it beside the error in C.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from scanfield.errors import InputError

SHARE = 0.9

Image = Tensor | np.ndarray


def changed_voxels(
    prior: Image, reference: Image, mask: Image | None = None, share: float = SHARE
) -> Bool[np.ndarray, "n0 n1 n2"]:
    """C: inside the mask, the fewest voxels that hold `share` (above 0, at most 1) of the squared change.

    Raises:
        InputError: shapes differ, or nothing changed inside the mask.
    """
    change = _array(reference) - _same(_array(prior), _array(reference), "prior")
    if not 0 < share <= 1:
        raise ValueError(f"a share is above 0 and at most 1, got {share}")
    squares = change**2 if mask is None else change**2 * _same(_array(mask) != 0, change, "mask")
    if not squares.any():
        raise InputError("prior and reference are equal inside the mask: nothing changed")
    order = np.argsort(squares, axis=None)[::-1]
    kept = np.cumsum(squares.flat[order])
    chosen = np.zeros(squares.shape, dtype=bool)
    chosen.flat[order[: int(np.searchsorted(kept, share * kept[-1] * (1 - 1e-12))) + 1]] = True
    return chosen


def recovered(image: Image, prior: Image, reference: Image, changed: Image) -> float:
    """The share of the change that `image` shows over the voxels `changed`; all of one shape and unit.

    Raises:
        InputError: shapes differ, or nothing changed in these voxels.
    """
    r = _array(reference)
    where = _same(_array(changed) != 0, r, "changed voxels")
    p, x = _same(_array(prior), r, "prior")[where], _same(_array(image), r, "image")[where]
    true = r[where] - p
    power = float((true**2).sum())
    if power == 0:
        raise InputError("prior and reference are equal in these voxels: nothing changed")
    return float(((x - p) * true).sum()) / power


def _array(values: Image) -> np.ndarray:
    return (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).astype(np.float64)


def _same(values: np.ndarray, reference: np.ndarray, name: str) -> np.ndarray:
    if values.shape != reference.shape:
        raise InputError(f"{name} and reference differ in shape: {values.shape} and {reference.shape}", where=name)
    return values
