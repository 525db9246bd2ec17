"""Makes the scans packaged under src/scanfield/data/files from the development data.

    SCANFIELD_DATA=... python tools/make_samples.py

Sources, licences and changes are listed in src/scanfield/data/files/CREDITS.md.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np

from scanfield.data.nifti import write_nifti
from scanfield.data.write import write_atomically
from scanfield.space.grid import Grid

FILES = Path(__file__).resolve().parents[1] / "src/scanfield/data/files"
CHEST_SLICE = 2  # of slices_512.npz: subject C3N-00249 at the heart; the other subject is left to the benchmarks
CHEST_PLANE = 61  # the same slice in the half-resolution volume, which knows its place in the world
HEAD_BOX = (slice(12, 126), slice(22, 184), slice(72, 186))  # brain and skull without the neck and the empty margin


def chest_slice(data: Path) -> tuple[np.ndarray, Grid]:
    """512 x 512 chest slice in HU; outside the field of view's circle it is air, as scanners write it."""
    archive = np.load(data / "ct/slices_512.npz", allow_pickle=False)
    hu = archive["hu"][CHEST_SLICE].T[:, :, None].copy()  # stored as (row, column)
    half = nib.Nifti1Image.from_filename(data / "ct/chest_cptac_pda_C3N-00249.nii.gz").affine
    # The volume beside it holds 2 x 2 means: index i of the slice lies at index (i - 0.5) / 2 of the volume.
    to_half = np.diag([0.5, 0.5, 1.0, 1.0])
    to_half[:3, 3] = -0.25, -0.25, CHEST_PLANE
    i, j = np.indices(hu.shape[:2]) - 255.5
    hu[np.hypot(i, j) > 256] = -1000
    return hu, Grid((512, 512, 1), half @ to_half)


def volume(path: Path, box: tuple[slice, slice, slice] | None = None) -> tuple[np.ndarray, Grid]:
    """A volume as it is, or a box of it."""
    image = nib.Nifti1Image.from_filename(path)
    box = box or (slice(None),) * 3
    part = image.slicer[box]
    values = np.asarray(part.dataobj)
    return values, Grid(values.shape, part.affine)


def write(name: str, values: np.ndarray, grid: Grid, unit: str) -> None:
    path = FILES / f"{name}.nii.gz"
    write_nifti(path, values, grid, unit=unit)
    with write_atomically(path) as temporary:  # nibabel compresses for speed; these files travel in every wheel
        temporary.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=9, mtime=0))
    print(f"{path.name}: {values.shape} {values.dtype}, {path.stat().st_size / 2**20:.2f} MiB")


def main() -> None:
    data = Path(os.environ["SCANFIELD_DATA"])
    write("ct_chest_slice", *chest_slice(data), "HU")
    write("ct_abdomen_volume", *volume(data / "ct/totalseg_example_ct_sm.nii.gz"), "HU")
    write("mr_head_volume", *volume(data / "brain_t1_hires/t1w_pddl_half.nii.gz", HEAD_BOX), "arbitrary")


if __name__ == "__main__":
    main()
