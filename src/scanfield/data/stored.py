"""The type that an image's voxels have in its file: what they take there, and what they should become again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch

from scanfield.data.scan import Scan

StoredType = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"]
_WHOLE: tuple[StoredType, ...] = ("uint8", "int8", "int16", "uint16", "int32", "uint32")


def stored_type(path: Path, scan: Scan) -> StoredType:
    """The type of a NIfTI file's voxels if they are stored without a scale, else the smallest one that holds them all.

    Values that are no whole numbers, or too large for 32 bits, are float32.
    """
    if path.is_file() and path.name.endswith((".nii", ".nii.gz")):
        voxels: Any = nib.load(path).dataobj  # type: ignore[attr-defined]
        if (voxels.slope, voxels.inter) == (1.0, 0.0):
            name = np.dtype(voxels.dtype).name
            for kind in _WHOLE:
                if kind == name:
                    return kind
    if not torch.equal(scan.values, scan.values.round()):
        return "float32"
    low, high = float(scan.values.min()), float(scan.values.max())
    for kind in _WHOLE:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return kind
    return "float32"
