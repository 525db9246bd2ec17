"""What a reconstruction of stacks leaves in its folder beside the images: see `tasks.stacks`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.nifti import write_nifti
from scanfield.data.slices import SliceSet, slice_set
from scanfield.data.stacks import Stack
from scanfield.data.write import write_atomically
from scanfield.metrics.stacks import slice_agreement
from scanfield.operators.slices import SliceState
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction

SHOWN = 6  # slices in the report: the worst half, and as many that are typical
SCHEMA = 1


def write_volumes(folder: Path, module: Any, result: Reconstruction, grid: Grid) -> None:
    """Mask and standard deviation of the method's volume."""
    write_nifti(folder / "mask.nii.gz", module.mask(result, grid).to(torch.uint8), grid)
    write_nifti(folder / "deviation.nii.gz", module.deviation(result, grid), grid, unit=result.spec.unit)


def write_slices(
    folder: Path,
    state: SliceState,
    slices: SliceSet,
    after: Float[Tensor, " m"],
    before: Float[Tensor, " m"],
) -> None:
    """The table of slices, the slices at their poses, and what the report shows of them.

    Args:
        after: the pixels as the result predicts them.
        before: the same, were the slices where they were at first.
    """
    of = slices.slice_index
    agreement = [slice_agreement(slices.pixels, values, of, slices.count) for values in (before, after)]
    records = []
    (folder / "slices").mkdir(exist_ok=True)
    soundness = state.soundness()
    for old in (folder / "slices").glob("*.nii.gz"):
        old.unlink()
    for k in range(slices.count):
        stack, number = int(slices.stack_index[k]), int(slices.number[k])
        name = f"slices/stack{stack}_slice{number:03d}.nii.gz"
        image = slices.image(k, slices.pixels) * slices.scale[stack].cpu()
        write_nifti(folder / name, image, slices.grid(k, state.poses[k]))
        records.append(
            {
                "stack": stack,
                "number": number,
                "file": name,
                "pose": state.poses[k].tolist(),
                "initial_pose": slices.initial[k].tolist(),
                "weight": float(state.weight[k]),
                "scale": float(state.scale[k]),
                "soundness": float(soundness[k]),
                "ncc_before": _number(agreement[0].ncc[k]),
                "ncc": _number(agreement[1].ncc[k]),
                "rmse": _number(agreement[1].rmse[k]),
                "pixels": int(agreement[1].pixels[k]),
            }
        )
    facts = {
        "schema": SCHEMA,
        "poses": "4x4, frame of the slice (mm, origin in its middle, z across it) -> world (mm, RAS+)",
        "stacks": [Path(source).name for source in slices.sources],
        "slices": records,
    }
    with write_atomically(folder / "slices.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    shown = _to_show(state, agreement[1].pixels)
    images: dict[str, Any] = {"index": np.array(shown)}
    for place, k in enumerate(shown):
        inside = slices.image(k, torch.ones_like(slices.pixels))[..., 0] > 0
        rows, columns = (_ends(inside.any(dim=axis)) for axis in (1, 0))
        for name, values in (("measured", slices.pixels), ("before", before), ("after", after)):
            images[f"{name}{place}"] = slices.image(k, values)[rows, columns, 0].numpy()
    with write_atomically(folder / "slices.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **images)


def _to_show(state: SliceState, pixels: Tensor) -> list[int]:
    """The least sound slices and usual ones, among those that show much."""
    large = (pixels >= 0.4 * pixels.max()).nonzero()[:, 0]
    order = large[torch.argsort(state.soundness()[large], stable=True)].tolist()
    half = min(SHOWN // 2, len(order) // 2)
    middle = len(order) // 2
    return order[:half] + order[middle : middle + SHOWN - half]


def _ends(inside: Tensor) -> slice:
    """From the first to the last that is true."""
    where = inside.nonzero()[:, 0]
    return slice(int(where[0]), int(where[-1]) + 1)


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


def write_resimulated(folder: Path, stacks: Sequence[Stack], result: Reconstruction) -> list[dict[str, Any]]:
    """The stacks as a result predicts them, and measured minus predicted, on their own voxels; zero where their masks
    are not. Says for each how well they agree."""
    slices = slice_set(stacks).moved(torch.tensor(result.provenance["stack_transforms"]))
    predicted = result.predict(slices) * slices.scale[slices.stack_index][slices.slice_index]
    rows = []
    for index, stack in enumerate(stacks):
        mine = slices.stack_index[slices.slice_index] == index
        number = slices.number[slices.slice_index[mine]]
        place = (number, slices.pixel_index[mine])
        measured = stack.planes(stack.scan.values.float()).flatten(1)[place]
        residual = measured - predicted[mine]
        for name, values in (("predicted", predicted[mine]), ("residual", residual)):
            planes = torch.zeros(stack.count, stack.plane_shape[0] * stack.plane_shape[1])
            planes[place] = values
            image = planes.reshape(stack.count, *stack.plane_shape).movedim(0, stack.slice_axis)
            write_nifti(folder / f"{name}_{index}.nii.gz", image, stack.scan.grid, unit=stack.scan.unit)
        agreement = slice_agreement(measured, predicted[mine], torch.zeros_like(number), 1)
        rows.append(
            {
                "stack": Path(stack.scan.source).name,
                "predicted": f"predicted_{index}.nii.gz",
                "residual": f"residual_{index}.nii.gz",
                "rms": float(residual.square().mean().sqrt()),
                "ncc": float(agreement.ncc[0]),
            }
        )
    return rows
