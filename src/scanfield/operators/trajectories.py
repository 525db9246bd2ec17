"""k-space trajectories within a slice: golden-angle radial, spiral, Cartesian lines.

All are (views, samples, 3) arrays in cycles/mm along the volume's voxel axes, zero along the third. Radial and spiral
ones reach the lower of the two Nyquist frequencies, k_max = 1 / (2 max spacing). Consecutive views lie pi / golden
ratio (111.246 degrees) apart, so that any number of consecutive ones covers k-space almost evenly (Winkelmann et al.,
IEEE Trans. Med. Imaging 26:68-76, 2007).
"""

from __future__ import annotations

import math

import numpy as np

from scanfield.errors import InputError
from scanfield.space.grid import Grid

GOLDEN_ANGLE_RAD = math.pi * (math.sqrt(5) - 1) / 2
CENTRE_SHARE = 0.3
"""Of the lines of a random Cartesian frame, those that lie side by side at the centre of k-space."""


def golden_angle_radial(volume: Grid, spokes: int, samples: int | None = None) -> np.ndarray:
    """Spokes through the centre: view v at v times the golden angle, from -k_max up to one step below k_max.

    Args:
        samples: per spoke; sample `samples // 2` is the centre (None: twice the larger matrix size, as oversampled
            readouts have).

    Raises:
        InputError: no spoke, or fewer than two samples.
    """
    samples = 2 * max(volume.shape[:2]) if samples is None else samples
    _check(spokes, samples)
    radius = 2 * k_max(volume) * (np.arange(samples) - samples // 2) / samples
    return _turned(radius.astype(np.complex128), spokes)


def spiral(volume: Grid, interleaves: int, samples: int, full: int | None = None) -> np.ndarray:
    """Archimedean spirals from the centre to k_max, each the golden angle after the one before.

    Args:
        samples: per interleaf, at nearly constant speed along the curve.
        full: number of interleaves whose turns together lie one field of view apart; fewer in a frame undersample it
            (None: all of them).

    Raises:
        InputError: no interleaf, or fewer than two samples.
    """
    full = interleaves if full is None else full
    _check(min(interleaves, full), samples)
    turns = k_max(volume) * max(n * s for n, s in zip(volume.shape[:2], volume.spacing_mm[:2], strict=True)) / full
    radius = np.sqrt(np.arange(samples) / (samples - 1))
    return _turned(k_max(volume) * radius * np.exp(2j * np.pi * turns * radius), interleaves)


def cartesian(volume: Grid, lines: np.ndarray) -> np.ndarray:
    """Lines along voxel axis 0 on the lattice of the volume's frequencies.

    Args:
        lines: (views,) index of every view's line, 0 to n1 - 1; n1 // 2 is the centre.

    Raises:
        InputError: no line, or one that does not exist.
    """
    n0, n1, _ = volume.shape
    lines = np.asarray(lines)
    if lines.ndim != 1 or lines.size == 0 or lines.min() < 0 or lines.max() >= n1:
        raise InputError(f"Cartesian lines are indices from 0 to {n1 - 1}, at least one of them")
    out = np.zeros((len(lines), n0, 3))
    out[..., 0] = (np.arange(n0) - n0 // 2) / (n0 * volume.spacing_mm[0])
    out[..., 1] = ((lines - n1 // 2) / (n1 * volume.spacing_mm[1]))[:, None]
    return out


def random_lines(n1: int, lines: int, generator: np.random.Generator) -> np.ndarray:
    """(lines,) sorted line indices of one frame: a block at the centre, the others at random, denser towards it.

    The density falls with the square of the distance from the centre (Lustig, Donoho, Pauly, MRM 58:1182-1195, 2007).

    Raises:
        InputError: not between 1 and n1 lines.
    """
    if not 1 <= lines <= n1:
        raise InputError(f"a frame of {n1} Cartesian lines cannot have {lines}", fix=f"choose from 1 to {n1} lines")
    block = max(1, round(CENTRE_SHARE * lines))
    inner = n1 // 2 - block // 2 + np.arange(block)
    rest = np.setdiff1d(np.arange(n1), inner)
    if lines == block:
        return inner
    density = (1.05 - np.abs(rest - n1 // 2) / (n1 / 2)) ** 2
    outer = generator.choice(rest, lines - block, replace=False, p=density / density.sum())
    return np.sort(np.concatenate([inner, outer]))


def k_max(volume: Grid) -> float:
    """The lower Nyquist frequency of the two axes within a slice, cycles/mm."""
    return 0.5 / max(volume.spacing_mm[:2])


def _turned(curve: np.ndarray, views: int) -> np.ndarray:
    """(views, samples, 3): one complex curve k_0 + i k_1, turned by the golden angle from view to view."""
    turned = curve * np.exp(1j * GOLDEN_ANGLE_RAD * np.arange(views))[:, None]
    return np.stack([turned.real, turned.imag, np.zeros_like(turned.real)], axis=-1)


def _check(views: int, samples: int) -> None:
    if views < 1 or samples < 2:
        raise InputError(f"a trajectory needs at least one view of two samples, got {views} of {samples}")
