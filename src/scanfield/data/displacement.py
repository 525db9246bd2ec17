"""Displacement fields as files that other programs can load.

Direction: a field lives on the grid of the *fixed* image and holds u in mm; the point x of the fixed image goes to its
place x + u(x) in the moving image. This is what resampling the moving image onto the fixed grid needs, and what ITK
calls the transform from fixed to moving. Points of the moving image go back with the field of the inverse.

Two NIfTI files with the vector on the fifth axis, (n0, n1, n2, 1, 3), differ in one respect:

    intent 1006 (DISPVECT)   components along RAS+, as the format's standard has it          `write_displacement`
    intent 1007 (VECTOR)     components along LPS+, as ITK, ANTs and SimpleITK write and     `write_itk_displacement`
                             read it

ITK turns the components of the first kind itself since 5.4; programs built on an older ITK need the second.
`read_displacement` follows the same rule.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.guard import located
from scanfield.data.nifti import read_nifti
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.space.grid import Grid

_RAS_INTENT, _LPS_INTENT = 1006, 1007
_LPS = np.array([-1, -1, 1], dtype=np.float32)
_SHEAR_MM = 1e-3  # at the corners


def write_displacement(path: str | Path, displacement: Float[Tensor, "n0 n1 n2 3"], grid: Grid) -> None:
    """Writes a displacement in mm with components along RAS+, atomically. The same input gives the same bytes.

    Raises:
        InputError: the name does not end in .nii or .nii.gz, the shape does not fit the grid, a value is NaN or
            infinite, or the file cannot be written.
    """
    with located(path):
        _write(path, _checked(displacement, grid), grid, _RAS_INTENT, "RAS")


def write_itk_displacement(path: str | Path, displacement: Float[Tensor, "n0 n1 n2 3"], grid: Grid) -> None:
    """Writes the same field, given along RAS+, for ITK: components along LPS+.

    `SimpleITK.DisplacementFieldTransform(SimpleITK.ReadImage(path, SimpleITK.sitkVectorFloat64))` maps fixed points to
    moving points (LPS mm), also on left-handed and oblique grids. A field of one slice is written as three equal slices
    around it: ITK would make a two-dimensional image of one, without its place in the world.

    Raises:
        InputError: as for `write_displacement`, or the grid's axes are not at right angles: ITK has no sheared images,
            it would read the points at other places.
    """
    with located(path):
        upright = grid.affine.copy()
        upright[:3, :3] = grid.directions * grid.spacing_mm
        upright[:3, 3] = grid.centre_mm - upright[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2)
        if not grid.same_as(Grid(grid.shape, upright), _SHEAR_MM):
            raise InputError(
                "the grid's axes are not at right angles; ITK cannot hold a field on a sheared grid",
                fix="evaluate the field on a grid with axes at right angles",
            )
        array = _checked(displacement, grid) * _LPS
        if grid.shape[2] == 1:
            array, grid = array.repeat(3, axis=2), _three_slices(grid)
        _write(path, array, grid, _LPS_INTENT, "LPS")


def read_displacement(path: str | Path) -> tuple[Float[Tensor, "n0 n1 n2 3"], Grid]:
    """The displacement in mm along RAS+ and its grid, from either kind of file.

    Raises:
        InputError: the file cannot be read (`read_nifti`), or is no field of displacement vectors.
    """
    scan = read_nifti(path, channels=True)
    with located(path):
        intent = _intent(path)
        if scan.values.ndim != 4 or scan.values.shape[-1] != 3 or intent not in (_RAS_INTENT, _LPS_INTENT):
            raise InputError(
                f"this is no displacement field: it has shape {tuple(scan.values.shape)} and intent {intent}",
                fix=f"three components per voxel are needed, and intent {_RAS_INTENT} (RAS) or {_LPS_INTENT} (LPS)",
            )
    return (scan.values * torch.from_numpy(_LPS) if intent == _LPS_INTENT else scan.values), scan.grid


def _three_slices(grid: Grid) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, 2]
    return Grid((grid.shape[0], grid.shape[1], 3), affine)


def _checked(displacement: Tensor, grid: Grid) -> np.ndarray:
    array = displacement.detach().cpu().numpy().astype(np.float32)
    if array.shape != (*grid.shape, 3):
        raise InputError(f"a displacement of shape {array.shape} does not fit a grid of shape {grid.shape}")
    bad = int((~np.isfinite(array)).any(axis=-1).sum())
    if bad:
        raise InputError(f"the displacement of {bad} of {grid.size} voxels is NaN or infinite")
    return array


def _write(path: str | Path, array: np.ndarray, grid: Grid, intent: int, frame: str) -> None:
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError("the name of a NIfTI file ends in .nii or .nii.gz")
    image = nib.Nifti1Image(array[:, :, :, None], grid.affine, dtype=np.float32)
    image.header.set_xyzt_units("mm")
    image.header.set_intent(intent, name=f"{frame} mm")
    image.header["descrip"] = f"scanfield unit=mm displacement {frame} fixed to moving".encode()
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    with write_atomically(path) as temporary:
        nib.save(image, temporary)


def _intent(path: str | Path) -> int:
    """The header's intent code; the file has been read once, so that its header is sound."""
    with Path(path).open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if compressed else Path(path).open("rb") as file:
        block = file.read(nib.Nifti2Header.sizeof_hdr)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.sizeof_hdr in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")):
            return int(kind(block[: kind.sizeof_hdr], check=False)["intent_code"])
    raise AssertionError("read_nifti accepts no other header")
