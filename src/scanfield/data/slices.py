"""All pixels of all slices of several stacks in one record: what slice-to-volume reconstruction fits.

Notation: p position of a pixel in the frame of its slice (mm, origin in the middle of the slice, p_z = 0), T_i = [R_i |
t_i] pose of slice i, x = R_i p + t_i its place in the world. The intensities of a stack are divided by the 99th
percentile inside its mask, since the scanner scales every stack in its own way; `SliceSet.scale` undoes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scanfield.data.stacks import Stack
from scanfield.errors import InputError
from scanfield.space.grid import Grid

PERCENTILE = 0.99
_SAMPLES = 2**22  # of a stack, for its percentile


@dataclass(frozen=True, eq=False)
class SliceSet:
    """The slices of `stacks` stacks that hold at least one pixel of a mask: n slices, m pixels.

    Args:
        pixels: (m,) float32 intensities, divided by the scale of their stack.
        slice_index: (m,) the slice of each pixel, 0 to n - 1, ascending.
        pixel_index: (m,) position of each pixel in its slice, in C order.
        local_mm: (m, 3) float32 p.
        initial: (n, 4, 4) float64 poses to begin with, slice frame -> world.
        thickness_mm: (n,) float32, of the slice itself.
        spacing_mm: (n, 2) float32 size of its pixels.
        shape: (n, 2) number of its pixels.
        stack_index: (n,) its stack.
        number: (n,) its place in the stack.
        shot: (n,) in which shot of its stack it was acquired; equal numbers of one stack are one moment.
        scale: (stacks,) float32 what the intensities of each stack were divided by.
        sources: (stacks,) the files, for messages and output names.
    """

    pixels: Float[Tensor, " m"]
    slice_index: Int[Tensor, " m"]
    pixel_index: Int[Tensor, " m"]
    local_mm: Float[Tensor, "m 3"]
    initial: Float[Tensor, "n 4 4"]
    thickness_mm: Float[Tensor, " n"]
    spacing_mm: Float[Tensor, "n 2"]
    shape: Int[Tensor, "n 2"]
    stack_index: Int[Tensor, " n"]
    number: Int[Tensor, " n"]
    shot: Int[Tensor, " n"]
    scale: Float[Tensor, " stacks"]
    sources: tuple[str, ...]

    kind = "stacks"

    @property
    def count(self) -> int:
        """n, the number of slices."""
        return len(self.initial)

    @property
    def stacks(self) -> int:
        """The number of stacks, those included of which no slice is left."""
        return len(self.sources)

    def to(self, device: torch.device | str) -> SliceSet:
        """The same on another device."""
        moved: dict[str, Any] = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **moved)

    def with_initial(self, poses: Float[Tensor, "n 4 4"]) -> SliceSet:
        """The same slices with other poses to begin with."""
        return replace(self, initial=poses.to(self.initial))

    def moved(self, transforms: Float[Tensor, "stacks 4 4"]) -> SliceSet:
        """The same slices after a 4x4 world transform of each stack."""
        return self.with_initial(transforms.to(self.initial)[self.stack_index] @ self.initial)

    def subset(self, keep: Bool[Tensor, " n"]) -> SliceSet:
        """Some of the slices, renumbered from 0; all stacks keep their number.

        Raises:
            InputError: none is left.
        """
        if not bool(keep.any()):
            raise InputError("no slice is left")
        keep = keep.to(self.initial.device)
        pixels = keep[self.slice_index]
        names = ("initial", "thickness_mm", "spacing_mm", "shape", "stack_index", "number", "shot")
        parts: dict[str, Any] = {name: vars(self)[name][keep] for name in names}
        parts |= {name: vars(self)[name][pixels] for name in ("pixels", "pixel_index", "local_mm")}
        renumbered = keep.cumsum(0) - 1
        return replace(self, slice_index=renumbered[self.slice_index[pixels]], **parts)

    def world(self, poses: Float[Tensor, "n 4 4"] | None = None) -> Float[Tensor, "m 3"]:
        """x of every pixel (mm) under `poses` (None: the initial ones), in their precision."""
        matrix = self.initial if poses is None else poses
        turned = torch.einsum("mij,mj->mi", matrix[:, :3, :3][self.slice_index], self.local_mm.to(matrix))
        return turned + matrix[:, :3, 3][self.slice_index]

    def grid(self, index: int, pose: Float[Tensor, "4 4"] | None = None) -> Grid:
        """The lattice of a slice, one voxel of its thickness deep, under `pose` (None: its initial one)."""
        n0, n1 = (int(n) for n in self.shape[index])
        spacing = np.array([*self.spacing_mm[index].tolist(), float(self.thickness_mm[index])])
        local = np.diag([*spacing, 1.0])
        local[:2, 3] = -spacing[:2] * (np.array([n0, n1]) - 1) / 2
        matrix = self.initial[index] if pose is None else pose
        return Grid((n0, n1, 1), matrix.detach().cpu().double().numpy() @ local)

    def image(self, index: int, values: Float[Tensor, " m"]) -> Float[Tensor, "n0 n1 1"]:
        """The values of a slice's pixels as an image, zero where its mask is not; on the CPU."""
        n0, n1 = (int(n) for n in self.shape[index])
        mine = self.slice_index == index
        image = torch.zeros(n0 * n1, dtype=values.dtype)
        image[self.pixel_index[mine].cpu()] = values[mine].detach().cpu()
        return image.reshape(n0, n1, 1)


def slice_set(stacks: Sequence[Stack]) -> SliceSet:
    """All slices of several stacks, with the poses of their files; `check_stacks` judges beforehand whether they fit.

    Raises:
        InputError: there is no stack, or no intensity above zero in the mask of one.
    """
    if not stacks:
        raise InputError("at least one stack is needed")
    parts = [_of_stack(stack, index) for index, stack in enumerate(stacks)]
    before = 0
    for part in parts:
        part["slice_index"] += before
        before += len(part["number"])
    joined: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return SliceSet(**joined, sources=tuple(s.scan.source or f"stack {k + 1}" for k, s in enumerate(stacks)))


def intensity_scale(values: Float[Tensor, " m"]) -> float:
    """The 99th percentile of intensities (of four million of them, evenly strided, where there are more)."""
    sample = values[:: max(1, -(-len(values) // _SAMPLES))]
    return float(sample.kthvalue(max(1, round(PERCENTILE * len(sample)))).values)


def _of_stack(stack: Stack, index: int) -> dict[str, Tensor]:
    """The members of a set of one stack, by name."""
    planes = stack.planes(stack.scan.values.float())
    inside = torch.ones_like(planes, dtype=torch.bool)
    if stack.scan.mask is not None:
        inside = stack.planes(stack.scan.mask)
    number = inside.flatten(1).any(dim=1).nonzero()[:, 0]
    slices, rows, columns = inside[number].nonzero().unbind(-1)
    values = planes[number][slices, rows, columns]
    scale = intensity_scale(values)
    if scale <= 0:
        raise InputError(
            f"the 99th percentile of the intensities in the mask is {scale:g}: there is nothing to see",
            where=stack.scan.source,
            fix="check the file and its mask",
        )
    size, spacing = torch.tensor(stack.plane_shape), torch.tensor(stack.plane_spacing_mm)
    place = (torch.stack([rows, columns], dim=-1) - (size - 1) / 2) * spacing
    n = len(number)
    return {
        "pixels": values / scale,
        "slice_index": slices,
        "pixel_index": rows * size[1] + columns,
        "local_mm": torch.cat([place, torch.zeros(len(place), 1)], dim=-1),
        "initial": torch.from_numpy(stack.poses())[number],
        "thickness_mm": torch.full((n,), float(stack.thickness_mm)),
        "spacing_mm": spacing.expand(n, 2).clone(),
        "shape": size.expand(n, 2).clone(),
        "stack_index": torch.full((n,), index),
        "number": number,
        "shot": torch.tensor(stack.order)[number],
        "scale": torch.tensor([scale]),
    }
