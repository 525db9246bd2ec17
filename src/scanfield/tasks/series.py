"""What methods and rivals for series of images from k-space share: what the series lies on, and other grids.

Complex images (moments, n0, n1, n2) at places on an axis 't' of time or phase (`space.timing`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from scanfield.data.rawmri import KSpace
from scanfield.methods import api
from scanfield.operators.nufft import nufft
from scanfield.run import Run
from scanfield.space.domain import Axis, Domain
from scanfield.space.grid import Grid
from scanfield.space.timing import NAME, centres
from scanfield.tasks.result import Reconstruction, Spec


def series_spec(data: KSpace, scale: float, run: Run, facts: dict[str, Any] | None = None) -> Spec:
    """The facts of a k-space scan that a field is built from.

    `grid` is the scan's volume, `domain` its box with the axis 't'; `facts` hold the moments of the scan's frames, the
    length of a cycle, and a seed for initial weights, drawn from `run`.

    Args:
        scale: largest value expected, of k-space or of the image, whatever the field is made of.
        facts: what else the method needs to rebuild itself, JSON-able.
    """
    geometry = data.acquisition
    seed = int(torch.randint(2**62, (), generator=run.generator("weights")))
    about = {"moments": geometry.frame_moments().tolist(), "cycle_s": geometry.when.cycle_s, "weights_seed": seed}
    domain = Domain.of_grid(geometry.volume).with_axis(geometry.when.axis)
    return Spec(domain, geometry.volume, data.unit, scale, about | (facts or {}))


def time_axis(spec: Spec) -> Axis:
    """The axis 't' of a series."""
    return next(axis for axis in spec.domain.axes if axis.name == NAME)


def middle(spec: Spec) -> np.ndarray:
    """(1,) the middle of the axis 't'."""
    return centres(time_axis(spec), 1)


def moments(spec: Spec, frames: int | None = None) -> np.ndarray:
    """(frames,) where the images of a series lie: the scan's own frames, or the middles of equal parts of its axis."""
    return np.asarray(spec.facts["moments"]) if frames is None else centres(time_axis(spec), frames)


def step_s(spec: Spec, frames: int) -> float | None:
    """Seconds between `frames` equal parts of the axis, or None where it has no seconds."""
    axis = time_axis(spec)
    if axis.unit == "frame":
        return None
    length: float = spec.facts["cycle_s"] if axis.unit == "cycle" else axis.high - axis.low
    return length / frames


def rendered_series(
    result: Reconstruction, grid: Grid, frames: int | None, part: str
) -> tuple[Float[Tensor, "n0 n1 n2 *t"], float | None]:
    """One real part of the images, frames as the last axis where there are several, and the seconds between them.

    Args:
        frames: at the middles of so many equal parts of the axis; None: the scan's own.
        part: 'magnitude', 'phase' (radians), 'real' or 'imaginary'.
    """
    places = moments(result.spec, frames)
    images = api.load(result.method).series(result, grid, places)
    values = {"magnitude": torch.abs, "phase": torch.angle, "real": torch.real, "imaginary": torch.imag}[part](images)
    stacked = values[0] if len(values) == 1 else values.movedim(0, -1).contiguous()
    return stacked, step_s(result.spec, len(places))


def on_grid(images: Complex[Tensor, "t n0 n1 n2"], own: Grid, grid: Grid) -> Complex[Tensor, "t m0 m1 m2"]:
    """Images on another grid by their Fourier series, the interpolation that k-space itself implies; zero outside.

    Axes of one voxel stand for their whole thickness.
    """
    if grid.same_as(own):
        return images
    size = torch.tensor(own.shape)
    voxel = own.to_voxel(grid.points().double())
    inside = ((voxel > -0.5 - 1e-6) & (voxel < size - 0.5 + 1e-6)).all(dim=1)
    along = [a - 3 for a in range(3) if own.shape[a] > 1]
    shifted = torch.fft.ifftshift(images, dim=along)
    spectrum = torch.fft.fftshift(torch.fft.fftn(shifted, dim=along, norm="forward"), dim=along)
    place = 2 * torch.pi * (voxel[inside] - size // 2) / size
    place[:, size == 1] = 0.0
    out = images.new_zeros(len(images), grid.size)
    # m(v) = sum_j spectrum_j exp(+i place . j): type 2 with the sign of the frequencies turned
    out[:, inside] = nufft(spectrum, -place.to(images.real.dtype))
    return out.reshape(len(images), *grid.shape)
