"""Two stages: an image becomes a field's weights, from which the fit to the measurement starts.

    theta_0 = argmin mean_i (f_theta(x_i) - image_i)^2          voxel centres x_i that the image shows

The prior enters as the starting point alone: whatever is fitted afterwards may leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Int
from torch import Tensor, nn

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.losses.values import value_loss
from scanfield.run import Run
from scanfield.space.samples import random_index


def embed_image(
    field: nn.Module,
    image: Scan,
    groups: Sequence[ParameterGroup],
    plan: FitConfig,
    run: Run,
    *,
    points_per_step: int | None = None,
    held_out: Callable[[], float] | None = None,
    stage: str = "prior",
) -> FitLog:
    """Fits a field of one channel to the voxels of an image, in place, by their mean square error.

    Args:
        field: world points (n, 3) -> values (n, 1) in the image's unit, on the run's device.
        image: what to embed; of an image with a mask the voxels inside it.
        groups: what of the field is fitted, and how.
        points_per_step: voxels drawn per step, with replacement; None takes all of them.
        held_out: error on data that neither stage fits: its curve goes on in the next stage.
        stage: name in the log and of the checkpoint.

    Raises:
        InputError: the image has several channels.
    """
    if image.values.ndim != 3:
        raise InputError(f"an image to embed has one channel, this one has {image.values.shape[3]}", where=image.source)
    chosen = slice(None) if image.mask is None else image.mask.flatten().nonzero()[:, 0]
    x, target = image.grid.points()[chosen].to(run.device), image.values.reshape(-1, 1).float()[chosen].to(run.device)
    power = float(target.square().mean()) or 1.0
    draws = run.generator(f"{stage} voxels")

    def batches(step: int) -> Int[Tensor, " m"] | slice:
        if points_per_step is None or points_per_step >= len(x):
            return slice(None)
        return random_index(len(x), points_per_step, draws).to(run.device)

    def loss(step: int, index: Int[Tensor, " m"] | slice) -> dict[str, Tensor]:
        return {"prior image": value_loss(field, x[index], target[index]) / power}

    return minimise(stage, groups, loss, batches, plan, run, held_out=held_out)
