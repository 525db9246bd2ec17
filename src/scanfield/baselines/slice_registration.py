"""Slices to a volume: rigid registration of every slice for itself, and what the volume shows at a slice.

Notation: y_ij pixel j of slice i, v(x) the volume, linearly interpolated; p_ij(T) = mean_k v(T_i(p_ij + S_i^{1/2} u_k))
its pixel as the volume predicts it (`operators.slices`). All slices are moved at once by Adam:

    T* = argmin  mean_i (1 - NCC_j(y_ij, p_ij(T)))  +  a mean_i (|w_i|^2 + 0.001 |t_i|^2)

with w (rad) and t (mm) the way from the initial pose: slices without structure of their own stay near it. The
correlation of a slice does not depend on its scale.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.data.slices import SliceSet
from scanfield.fields.image import ImageField
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import cosine
from scanfield.losses.slices import motion
from scanfield.operators.slices import SliceOperator, SlicePoses, psf_sigma_mm
from scanfield.run import Run
from scanfield.space.grid import Grid

PIXELS = 300  # of a slice and step, about
POINTS = 8  # of a pixel's point spread, while slices are moved
FINE_POINTS = 24  # and when the volume is compared with them
RATE = 0.01  # rad, and units of 30 mm, of the first steps
MOTION = 0.5  # a
CHUNK = 2**18  # values held at a time


def register_slices(
    volume: Float[Tensor, "n0 n1 n2"],
    grid: Grid,
    data: SliceSet,
    run: Run,
    *,
    poses: SlicePoses | None = None,
    steps: int = 40,
    name: str = "slices",
) -> SlicePoses:
    """The poses at which the slices of `data` look most like the volume.

    Args:
        poses: to start from, moved in place; by default the initial ones.
        steps: of Adam.
        name: of the generator that draws the pixels.
    """
    poses = (SlicePoses(data.initial) if poses is None else poses).to(run.device)
    here, image = data.to(run.device), ImageField(volume, grid).to(run.device)
    sigma, draws = psf_sigma_mm(here.spacing_mm, here.thickness_mm), run.generator(f"pixels of {name}")
    operator = SliceOperator(here.slice_index, here.local_mm, sigma, poses, POINTS)
    share = min(1.0, PIXELS * data.count / max(1, len(data.pixels)))

    def batches(step: int) -> Tensor:
        chosen = torch.rand(len(data.pixels), generator=draws) < share
        return chosen.nonzero()[:, 0].to(run.device)

    def loss(step: int, index: Int[Tensor, " m"]) -> dict[str, Tensor]:
        of = here.slice_index[index]
        predicted = image(operator.samples(index).x)[..., 0].mean(dim=1)
        likeness = slice_ncc(predicted, here.pixels[index], of, data.count).mean()
        return {"1 - NCC": 1 - likeness, "motion": motion(*poses.correction())}

    group = ParameterGroup("poses", list(poses.parameters()), RATE, cosine(0.05))
    minimise(name, [group], loss, batches, FitConfig(steps), run.again(quiet=True), weights={"motion": MOTION})
    return poses


def slice_ncc(
    p: Float[Tensor, " m"], y: Float[Tensor, " m"], of: Int[Tensor, " m"], count: int
) -> Float[Tensor, " count"]:
    """The correlation of both intensities over the pixels of each slice; 0 where one is constant or has no pixel."""

    def mean(values: Tensor) -> Tensor:
        return p.new_zeros(count).index_add(0, of, values) / pixels

    pixels = torch.bincount(of, minlength=count).clamp(min=1).to(p)
    a, b = p - mean(p)[of], y - mean(y)[of]
    power = mean(a.square()) * mean(b.square())
    flat = power <= torch.finfo(p.dtype).eps * (mean(p.square()) * mean(y.square()))
    return mean(a * b) * torch.where(flat, 0.0, torch.where(flat, torch.ones_like(power), power).rsqrt())


def predicted_pixels(
    volume: Float[Tensor, "n0 n1 n2"], grid: Grid, data: SliceSet, poses: Float[Tensor, "n 3 4"]
) -> Float[Tensor, " m"]:
    """What the volume shows at every pixel; on the CPU."""
    image, device = ImageField(volume, grid).to(poses.device), poses.device
    here = data.to(device)
    sigma = psf_sigma_mm(here.spacing_mm, here.thickness_mm)
    operator = SliceOperator(here.slice_index, here.local_mm, sigma, lambda: poses, FINE_POINTS)
    with torch.no_grad():
        parts = [
            image(operator.samples(index).x)[..., 0].mean(dim=1).cpu()
            for index in torch.arange(len(data.pixels), device=device).split(CHUNK // FINE_POINTS)
        ]
    return torch.cat(parts)
