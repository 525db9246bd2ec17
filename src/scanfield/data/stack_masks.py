"""Which pixels of a stack show what is to be reconstructed: masks from files, from other stacks, from intensities.

Every function returns the stack with a mask, inside the mask it had before. `write_mask_like` writes a mask with the
header of its stack, bit for bit, so that no program finds the two in different places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.data.guard import existing_file, located
from scanfield.data.pair import with_mask
from scanfield.data.scan import Scan
from scanfield.data.stacks import Stack
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.space.grid import Grid

_CHUNK = 2**20
_SAMPLES = 2**22  # for Otsu's histogram


def with_stack_mask(stack: Stack, mask: Scan, *, fix_header: bool = False) -> Stack:
    """The stack with a mask drawn on its own pixels: the voxels that are not zero.

    Args:
        fix_header: place the mask where the stack is, whatever its own header says; the shapes must agree.

    Raises:
        InputError: the mask lies on another grid (the part that differs is named), has channels, or is empty.
    """
    if fix_header and mask.grid.shape == stack.scan.grid.shape:
        mask = replace(mask, grid=stack.scan.grid)
    fix = "if it was drawn on this stack: --fix-mask-header"
    if mask.grid.shape != stack.scan.grid.shape:
        fix = "give the mask that was drawn on this stack, or resample this one onto it with --volume-mask"
    with located(mask.source or "mask"):
        stack.scan.grid.check_same(mask.grid, mine="stack", theirs="mask", fix=fix)
    return _within(stack, with_mask(stack.scan, mask, "stack").mask, f"the mask {mask.source}")


def from_volume_mask(stack: Stack, mask: Scan) -> Stack:
    """The stack with a mask from any other grid, such as another stack's or a reconstructed volume's.

    Raises:
        InputError: the mask has channels or is empty, or no pixel of the stack lies in it.
    """
    if mask.values.ndim != 3:
        raise InputError("a mask has one channel", where=mask.source, fix="extract one channel")
    inside = mask_on(mask.values != 0, mask.grid, stack.scan.grid)
    return _within(stack, inside, f"the volume mask {mask.source}")


def above(stack: Stack, threshold: float) -> Stack:
    """The stack without the pixels whose intensity is at most `threshold`.

    Raises:
        InputError: none is brighter.
    """
    return _within(stack, stack.scan.values > threshold, f"the pixels brighter than {threshold:g}")


def otsu(stack: Stack) -> Stack:
    """The stack without its dark class, by Otsu's threshold (IEEE Trans. Syst. Man Cybern. 9:62-66, 1979) in its mask.

    Raises:
        InputError: the stack is constant in its mask.
    """
    from skimage.filters import threshold_otsu

    values = stack.scan.values if stack.scan.mask is None else stack.scan.values[stack.scan.mask]
    values = values.reshape(-1)
    sample = values[:: max(1, len(values) // _SAMPLES)].numpy()
    if sample.min() == sample.max():
        raise InputError("the stack is constant in its mask: Otsu's method finds no threshold", where=stack.scan.source)
    return above(stack, float(threshold_otsu(sample)))


def intersection(stacks: Sequence[Stack]) -> list[Stack]:
    """Every stack within the masks of all others (within their boxes, where they have no mask).

    Raises:
        InputError: nothing is left of a stack.
    """
    out = []
    for stack in stacks:
        inside = torch.ones(stack.scan.grid.shape, dtype=torch.bool)
        for other in stacks:
            if other is not stack:
                whole = torch.ones(1, dtype=torch.bool).expand(other.scan.grid.shape)
                mask = whole if other.scan.mask is None else other.scan.mask
                inside &= mask_on(mask, other.scan.grid, stack.scan.grid)
        out.append(_within(stack, inside, "the intersection of all stacks"))
    return out


def mask_on(mask: Bool[Tensor, "m0 m1 m2"], source: Grid, target: Grid) -> Bool[Tensor, "n0 n1 n2"]:
    """The voxels of `target` whose centres lie in a voxel of the mask."""
    parts = [
        mask_at(mask, source, target.to_world(target.voxels(flat).double()))
        for flat in torch.arange(target.size).split(_CHUNK)
    ]
    return torch.cat(parts).reshape(target.shape)


def mask_at(mask: Bool[Tensor, "m0 m1 m2"], grid: Grid, x: Float[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
    """Which world points (mm) lie in a voxel of the mask."""
    index = grid.to_voxel(x).round().long()
    last = torch.tensor(grid.shape) - 1
    inside = ((index >= 0) & (index <= last)).all(dim=-1)
    i, j, k = torch.minimum(index.clamp(min=0), last).unbind(-1)
    return inside & mask[i, j, k]


def write_mask_like(path: str | Path, mask: Bool[Tensor, "n0 n1 n2"], like: str | Path) -> None:
    """Writes a mask (0 and 1) with the header of the NIfTI file `like`.

    Sform, qform, their codes, spacing and units are copied as they are.

    Raises:
        InputError: the name is no NIfTI name, `like` is no NIfTI file of the mask's shape, or writing fails.
    """
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError("the name of a NIfTI file ends in .nii or .nii.gz", where=str(path))
    with located(like):
        try:
            image = nib.load(existing_file(like))
        except (nib.filebasedimages.ImageFileError, OSError) as error:
            raise InputError(f"this is not a NIfTI file: {error}") from error
        if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 is one, too
            raise InputError("this is not a NIfTI file", fix="give the stack's own file")
        shape = image.shape
        if (*shape, 1, 1, 1)[:3] != tuple(mask.shape) or mask.numel() != np.prod(shape):
            raise InputError(f"its shape {shape} is not that of the mask, {tuple(mask.shape)}")
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 1
    copy = type(image)(mask.numpy().astype(np.uint8).reshape(shape), None, header)  # without an affine, none is changed
    with write_atomically(path) as temporary:
        nib.save(copy, temporary)


def _within(stack: Stack, inside: Tensor | None, name: str) -> Stack:
    assert inside is not None
    mask = inside if stack.scan.mask is None else inside & stack.scan.mask
    if not bool(mask.any()):
        raise InputError(
            f"no pixel of the stack lies in {name.strip()}",
            where=stack.scan.source,
            fix="check that both show the same place, and what masks were given",
        )
    return replace(stack, scan=replace(stack.scan, mask=mask))
