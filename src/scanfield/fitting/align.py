"""A rigid, similarity or affine map between two images, before anything deformable.

    pose* = argmin  1 - NCC(F(x), M(pose(x)))        x random points of the fixed mask, images smoothed less and less

by Adam, from where the centres of mass meet. Global correlation asks for images of one contrast.
"""

from __future__ import annotations

from torch import Tensor

from scanfield.data.pair import Pair
from scanfield.fields.image import ImageField
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import cosine
from scanfield.losses.image import ncc
from scanfield.operators.smooth import smoothed
from scanfield.run import Run
from scanfield.space.lattice import MaskedVoxels
from scanfield.space.pose import Pose, centre_of_mass

SMOOTHING_MM = (8.0, 4.0)  # level by level
STEPS, POINTS = 120, 8000  # a level; a step
RATE_MM = 1.0  # of the translation; the other parameters move the image's edge about as fast
LEAST_SHOWN = 0.05  # part of the points that must lie in the moving image


def centred_pose(pose: Pose, pair: Pair) -> None:
    """Sets the translation such that the images' centres of mass meet (of their masks, where they have them)."""
    fixed, moving = (centre_of_mass(s.values, s.grid, s.mask) for s in (pair.fixed, pair.moving))
    pose.align(fixed, moving)


def align(pose: Pose, pair: Pair, run: Run, *, stage: str = "pose") -> list[FitLog]:
    """Fits `pose`, points of the fixed image -> the moving image (mm), in place, from where it stands.

    Args:
        stage: prefix of the stages' names in checkpoints and logs.
    """
    voxels, draws = MaskedVoxels(pair.fixed.grid, pair.fixed.mask), run.generator(f"{stage} points")
    radius = max(n * s for n, s in zip(pair.fixed.grid.shape, pair.fixed.grid.spacing_mm, strict=True)) / 2
    logs = []
    for level, sigma in enumerate(SMOOTHING_MM):
        fixed, moving = (
            ImageField(smoothed(s.values, s.grid, sigma), s.grid, mask=s.mask).to(run.device)
            for s in (pair.fixed, pair.moving)
        )

        def loss(step: int, x: Tensor, fixed: ImageField = fixed, moving: ImageField = moving) -> dict[str, Tensor]:
            y = pose(x)
            shown = moving.shown(y).to(x.dtype)
            weight = shown if float(shown.mean()) > LEAST_SHOWN else None
            return {"ncc": 1 - ncc(moving(y)[:, 0], fixed(x)[:, 0], weight)}

        rates = {id(pose.translation): RATE_MM}
        groups = [
            ParameterGroup(name, [p], rates.get(id(p), RATE_MM / radius) / 2**level, cosine(0.1))
            for name, p in pose.named_parameters()
        ]
        logs.append(
            minimise(
                f"{stage} {level}",
                groups,
                loss,
                lambda step: voxels.points(POINTS, draws).to(run.device),
                FitConfig(STEPS),
                run,
            )
        )
    return logs
