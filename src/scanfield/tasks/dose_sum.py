"""Two doses added up, the second one where the body of the first one was then.

A point x of the first dose's image lies at phi(x) in the second one's, where the second dose is read: the sum is
D_1(x) + D_2(phi(x)).
"""

from __future__ import annotations

import torch
from torch import nn

from scanfield.data.dose import Dose, add_doses, check_frames, shared_frame
from scanfield.run import Run
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.warp import mapping, warped_image

PHYSICS = (
    "Doses were added point by point: energy per mass at one place of the body as the map identifies it. Where tissue "
    "shrinks, grows, slides or vanishes there is no such place, and energy is not conserved; the error is as large as "
    "that of the map times the dose gradient. Fractions are not weighted by their biological effect."
)


def accumulated(first: Dose, second: Dose, result: Reconstruction | None, run: Run) -> Dose:
    """The sum on the first dose's grid.

    Args:
        result: a registration whose fixed image is in the first dose's space and whose moving image in the second's;
            None where both are in one space.

    Raises:
        InputError: without a registration, the doses state different frames of reference; or the result does not
            register.
    """
    phi: nn.Module = nn.Identity()
    if result is None:
        check_frames(shared_frame(first), shared_frame(second), "the two doses", second.source)
    else:
        phi = mapping(result).to(run.device)
    values, inside = warped_image(phi, second.values, second.grid, first.grid, run.device)
    values = torch.where(inside, values, torch.zeros(())).clamp(min=0)
    lost = 1 - float(values.double().mean()) * first.grid.voxel_volume_mm3 * first.grid.size / (
        float(second.values.double().mean()) * second.grid.voxel_volume_mm3 * second.grid.size
    )
    run.note(PHYSICS)
    run.note(f"Of the second dose's integral over its volume, {100 * (1 - lost):.1f} % is in the sum.")
    mapped = Dose(values, first.grid, source=second.source)
    return add_doses(Dose(first.values, first.grid, source=first.source), mapped)
