"""Doses and structures in whatever file the user names: DICOM, NIfTI, `.npz`.

An `.npz` file holds a dose as `dose_gy` or `dose_cGy` (n0, n1, n2), where it lies as `affine` (4, 4; voxel index -> mm,
RAS+) or `voxel_mm` (3; centred at the origin), and optionally structures as `roi_bits` (n0, n1, n2; bit b of a voxel
says whether structure b covers it) with `roi_names`.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scanfield.data.dicomrt import read_rtdose
from scanfield.data.dose import Dose
from scanfield.data.guard import check_memory, existing_file, located
from scanfield.data.nifti import read_nifti
from scanfield.data.structures import Structure, StructureSet, read_rtstruct
from scanfield.errors import InputError
from scanfield.space.grid import Grid

GY = {"Gy": 1.0, "cGy": 0.01}
_NIFTI, _NPZ = (".nii", ".nii.gz"), ".npz"


def read_dose(path: str | Path, *, unit: Literal["Gy", "cGy"] = "Gy", relative_to_gy: float | None = None) -> Dose:
    """Reads a dose: RTDOSE (a file, or a folder with one), NIfTI or `.npz`.

    Args:
        unit: of the values of a NIfTI file, which do not say.
        relative_to_gy: see `data.dicomrt.read_rtdose`.

    Raises:
        InputError: the file is missing, damaged or of another kind, or holds no dose; see `Dose` and the reader.
    """
    name = str(path)
    if relative_to_gy is not None and (name.endswith(_NIFTI) or name.endswith(_NPZ)):
        raise InputError("only an RTDOSE file can hold a relative dose", where=name, fix="leave out --relative-to-gy")
    if name.endswith(_NIFTI):
        image = read_nifti(path)
        if image.unit not in ("arbitrary", *GY):
            raise InputError(f"the image says it is in '{image.unit}', a dose is in Gy", where=name)
        scale = GY[image.unit] if image.unit in GY else GY[unit]
        return Dose(image.values * scale, image.grid, source=name)
    if unit != "Gy":
        raise InputError("only a NIfTI dose needs a unit, this file has its own", where=name, fix="leave out --unit")
    return _npz_dose(path) if name.endswith(_NPZ) else read_rtdose(path, relative_to_gy=relative_to_gy)


def read_structures(path: str | Path) -> StructureSet:
    """Reads structures: RTSTRUCT, a NIfTI label map (a structure a label, called by its number), or `.npz`.

    Raises:
        InputError: the file is missing, damaged or of another kind, or holds no structure.
    """
    name = str(path)
    if name.endswith(_NIFTI):
        image = read_nifti(path)
        labels = [int(v) for v in image.values.unique() if v != 0]
        if not labels or bool((image.values != image.values.round()).any()) or len(labels) > 256:
            raise InputError("a label map holds a few whole numbers, this image holds others", where=name)
        found = [Structure(f"label {k}", (image.values == k, image.grid)) for k in labels]
        return StructureSet(tuple(found), source=name)
    return _npz_structures(path) if name.endswith(_NPZ) else read_rtstruct(path)


def _npz_dose(path: str | Path) -> Dose:
    path = existing_file(path)
    with located(path):
        held = _arrays(path, ("dose_gy", "dose_cGy", "affine", "voxel_mm"))
        name = next((n for n in ("dose_gy", "dose_cGy") if n in held), None)
        if name is None or held[name].ndim != 3:
            raise InputError(
                "the file holds no dose: 'dose_gy' or 'dose_cGy' with three axes is needed",
                fix="write np.savez(FILE, dose_gy=..., affine=...)",
            )
        values = held[name].astype(np.float32) * np.float32(1.0 if name == "dose_gy" else 0.01)
        return Dose(torch.from_numpy(values), _npz_grid(held, held[name].shape), source=str(path))


def _npz_structures(path: str | Path) -> StructureSet:
    path = existing_file(path)
    with located(path):
        held = _arrays(path, ("roi_bits", "roi_names", "affine", "voxel_mm"))
        if "roi_bits" not in held or "roi_names" not in held or held["roi_bits"].ndim != 3:
            raise InputError("the file holds no structures: 'roi_bits' (three axes) and 'roi_names' are needed")
        bits, grid = held["roi_bits"].astype(np.int64), _npz_grid(held, held["roi_bits"].shape)
        masks = {str(name): torch.from_numpy((bits >> k & 1).astype(bool)) for k, name in enumerate(held["roi_names"])}
        found = tuple(Structure(name, (mask, grid)) for name, mask in masks.items() if bool(mask.any()))
        skipped = tuple(name for name, mask in masks.items() if not bool(mask.any()))
        if not found:
            raise InputError("the file holds no structure with a voxel")
        return StructureSet(found, skipped=skipped, source=str(path))


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_memory(4 * sum(entry.file_size for entry in archive.infolist()), path)
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in names if name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"the file is truncated, damaged or no .npz: {error}") from None


def _npz_grid(held: dict[str, Any], shape: tuple[int, ...]) -> Grid:
    size = (shape[0], shape[1], shape[2])
    if "affine" in held:
        return Grid(size, held["affine"])
    if "voxel_mm" in held and held["voxel_mm"].shape == (3,):
        a, b, c = (round(float(v), 6) for v in held["voxel_mm"])  # float32 would trail digits that nobody measured
        return Grid.centred(size, (a, b, c))
    raise InputError("the file does not say where its voxels are: 'affine' (4, 4) or 'voxel_mm' (3) is needed")
