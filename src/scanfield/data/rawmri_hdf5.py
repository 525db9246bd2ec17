"""Raw MRI in HDF5: ISMRMRD (Inati et al., MRM 77:411-421, 2017) and files laid out like those of fastMRI.

ISMRMRD: every imaging readout is a view; noise, navigator and calibration readouts are left out. The volume is the
encoded space, readout oversampling included, oriented by the readouts' directions (LPS in the file, RAS+ here), with
its phase centre at their position. Readouts with a trajectory of their own have it in cycles per voxel of the encoded
space (-0.5 to 0.5). Time stamps count 2.5 ms. Frames are the distinct pairs of repetition and cardiac phase.

fastMRI: `kspace` (slices, [coils,] rows, columns), the rows being the readout, and `ismrmrd_header`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scanfield.data.guard import check_memory, existing_file, located
from scanfield.data.rawmri import KSpace, centred_volume
from scanfield.errors import InputError, MissingExtra
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry

TICK_S = 0.0025
_SKIPPED = (19, 20, 23, 24, 26, 27, 28, 29)  # flags: noise, calibration, navigation, phase correction, feedback, dummy
_REVERSED = 22
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def read_hdf5(path: str | Path, *, slice_index: int | None = None) -> KSpace:
    """Reads one slice, or one volume, of k-space from ISMRMRD or fastMRI-style HDF5.

    Args:
        slice_index: which slice of a multi-slice scan; None where there is one.

    Raises:
        InputError: the file is missing or damaged, is neither of the two, has no dimensions, no imaging readout or
            several slices to choose from, or its parts contradict each other.
        MissingExtra: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingExtra("h5py", "mri", "reading HDF5") from None
    path = existing_file(path)
    with located(path):
        try:
            with h5py.File(path, "r") as file:
                if isinstance(file.get("kspace"), h5py.Dataset):
                    return _fastmri(file, slice_index, str(path))
                for group in file.values():
                    if isinstance(group, h5py.Group) and "xml" in group and "data" in group:
                        return _ismrmrd(group, slice_index, str(path))
        except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
            raise InputError(f"the file is truncated, damaged or no HDF5: {error}", fix="copy the file again") from None
        raise InputError(
            "the file holds neither ISMRMRD data ('dataset/xml' and 'dataset/data') nor 'kspace' as fastMRI does"
        )


def _fastmri(file: Any, slice_index: int | None, source: str) -> KSpace:
    data = file["kspace"]
    if data.ndim not in (3, 4) or data.dtype.kind != "c" or 0 in data.shape:
        raise InputError(
            f"complex k-space with axes (slices, [coils,] rows, columns) is needed, got {data.dtype} with {data.shape}",
            where="kspace",
        )
    if "ismrmrd_header" not in file:
        raise InputError(
            "the k-space has no dimensions: the file lacks 'ismrmrd_header'",
            where="ismrmrd_header",
            fix="write an .npz file with matrix and field_of_view_mm, see scanfield.data.rawmri",
        )
    encoding = _Encoding(file["ismrmrd_header"][()])
    z = _chosen(np.arange(data.shape[0]), slice_index)
    check_memory(8 * data[z].size, source)
    values = np.asarray(data[z], dtype=np.complex64)
    values = values[None] if values.ndim == 2 else values
    coils, n0, n1 = values.shape
    volume = centred_volume((n0, n1, 1), encoding.extent_mm(n0, n1))
    lines = np.flatnonzero((values != 0).any(axis=(0, 1)))
    if not len(lines):
        raise InputError("every line of k-space is zero", where="kspace")
    trajectory = np.zeros((len(lines), n0, 3))
    trajectory[..., 0] = (np.arange(n0) - n0 // 2) / (n0 * volume.spacing_mm[0])
    trajectory[..., 1] = ((lines - n1 // 2) / (n1 * volume.spacing_mm[1]))[:, None]
    views = np.ascontiguousarray(values[..., lines].transpose(2, 0, 1))
    return KSpace(torch.from_numpy(views), KSpaceGeometry(trajectory, coils, volume), unit="arbitrary", source=source)


def _ismrmrd(group: Any, slice_index: int | None, source: str) -> KSpace:
    encoding = _Encoding(group["xml"][0])
    check_memory(2 * group["data"].id.get_storage_size(), source)
    records = group["data"][:]
    head = records["head"]
    skipped = sum(1 << (flag - 1) for flag in _SKIPPED)
    records = records[(head["flags"].astype(np.int64) & skipped) == 0]
    if not len(records):
        raise InputError("the file holds no imaging readout")
    chosen = _chosen(np.unique(records["head"]["idx"]["slice"]), slice_index)
    records = records[records["head"]["idx"]["slice"] == chosen]
    head, index = records["head"], records["head"]["idx"]
    for name in ("contrast", "set"):
        if len(np.unique(index[name])) > 1:
            raise InputError(f"the scan has several values of '{name}', which are different images", fix="split it")
    coils, samples = _one(head, "active_channels", "coils"), _one(head, "number_of_samples", "samples")
    values = np.stack([_readout(r, coils, samples) for r in records])
    volume = encoding.volume(head[0])
    trajectory = _trajectory(records, encoding, volume, samples)
    ticks = head["acquisition_time_stamp"].astype(np.float64)
    dwell = float(head["sample_time_us"][0]) * 1e-6
    _, frame = np.unique(np.stack([index["repetition"], index["phase"]]), axis=1, return_inverse=True)
    geometry = KSpaceGeometry(
        trajectory,
        coils,
        volume,
        time_s=(ticks - ticks.min()) * TICK_S if np.ptp(ticks) > 0 else None,
        dwell_s=dwell if dwell > 0 else None,
        frame=np.asarray(frame).reshape(-1).astype(np.int64),
    )
    return KSpace(torch.from_numpy(values), geometry, unit="arbitrary", source=source)


class _Encoding:
    """What a header's first encoding says: voxels, extent and centre of the encoded space."""

    def __init__(self, text: Any) -> None:
        try:
            root = ElementTree.fromstring(text if isinstance(text, bytes) else str(text).encode())
        except ElementTree.ParseError as error:
            raise InputError(f"the header is no XML: {error}", where="xml") from None
        self._first = next((e for e in root.iter() if _tag(e) == "encoding"), None)
        self.matrix = [int(self._number("encodedSpace", "matrixSize", a)) for a in "xyz"]
        self.extent = [self._number("encodedSpace", "fieldOfView_mm", a) for a in "xyz"]
        if min(self.matrix) < 1 or not 0 < min(self.extent) < np.inf:
            raise InputError(f"the encoded space is empty: {self.matrix} voxels, {self.extent} mm", where="xml")

    def _find(self, *path: str) -> str | None:
        node = self._first
        for name in path:
            node = None if node is None else next((child for child in node if _tag(child) == name), None)
        return None if node is None else node.text

    def _number(self, *path: str) -> float:
        text = self._find(*path)
        try:
            return float(text or "")
        except ValueError:
            raise InputError(
                f"the k-space has no dimensions: the header lacks a number for {'/'.join(path)}", where="xml"
            ) from None

    def centre(self, step: int) -> int:
        """Index of the line through the centre of k-space along phase encoding 1 or 2."""
        text = self._find("encodingLimits", f"kspace_encoding_step_{step}", "center")
        return int(text) if text is not None else self.matrix[step] // 2

    def extent_mm(self, n0: int, n1: int) -> list[float]:
        """Extent of `n0` x `n1` samples as far apart as the header says; the array may be padded or cropped."""
        return [self.extent[0] * n0 / self.matrix[0], self.extent[1] * n1 / self.matrix[1], self.extent[2]]

    def volume(self, head: Any) -> Grid:
        """The encoded space where the readouts were taken."""
        directions = np.stack([head[name] for name in ("read_dir", "phase_dir", "slice_dir")], axis=1).astype(float)
        if not directions.any():  # files of simulations leave them out
            directions = np.diag(_LPS_TO_RAS)
        linear = _LPS_TO_RAS[:, None] * directions * (np.asarray(self.extent) / self.matrix)
        affine = np.eye(4)
        affine[:3, :3] = linear
        affine[:3, 3] = _LPS_TO_RAS * head["position"] - linear @ (np.asarray(self.matrix) // 2)
        return Grid((self.matrix[0], self.matrix[1], self.matrix[2]), affine)


def _trajectory(records: np.ndarray, encoding: _Encoding, volume: Grid, samples: int) -> np.ndarray:
    """(views, samples, 3) cycles/mm: the readouts' own, or lines of a Cartesian scan."""
    head, spacing = records["head"], np.asarray(volume.spacing_mm)
    out = np.zeros((len(records), samples, 3))
    own = _one(head, "trajectory_dimensions", "trajectory axes")
    if own:
        if own > 3:
            raise InputError(f"a trajectory has at most three axes, got {own}", where="traj")
        for points, record in zip(out, records, strict=True):
            if record["traj"].size != samples * own:
                raise InputError(
                    f"a trajectory has {record['traj'].size} numbers for {samples} samples of {own} axes", where="traj"
                )
            points[:, :own] = record["traj"].reshape(samples, own)
        return out / spacing
    step = 1 / (np.asarray(volume.shape) * spacing)
    out[..., 0] = (np.arange(samples) - head["center_sample"].astype(int)[:, None]) * step[0]
    for axis in (1, 2):
        line = head["idx"][f"kspace_encode_step_{axis}"].astype(int) - encoding.centre(axis)
        out[..., axis] = (line * step[axis])[:, None]
    return out


def _readout(record: Any, coils: int, samples: int) -> np.ndarray:
    data = record["data"]
    if data.size != 2 * coils * samples:
        raise InputError(f"a readout has {data.size // 2} values for {coils} coils of {samples} samples", where="data")
    values = np.ascontiguousarray(data, dtype=np.float32).view(np.complex64).reshape(coils, samples)
    return values[:, ::-1] if int(record["head"]["flags"]) >> (_REVERSED - 1) & 1 else values


def _one(head: np.ndarray, name: str, what: str) -> int:
    found = np.unique(head[name])
    if len(found) > 1:
        raise InputError(f"the readouts differ in their number of {what}: {found.tolist()}", where=name)
    if not found[0] and what in ("coils", "samples"):
        raise InputError(f"the readouts have zero {what}", where=name)
    return int(found[0])


def _chosen(slices: np.ndarray, wanted: int | None) -> int:
    """The slice to read, one of `slices`."""
    if wanted is None and len(slices) > 1:
        raise InputError(
            f"the scan has {len(slices)} slices, {slices.min()} to {slices.max()}", fix="choose one: slice_index"
        )
    if wanted is not None and wanted not in slices:
        raise InputError(f"there is no slice {wanted}; the scan has {slices.min()} to {slices.max()}")
    return int(slices[0]) if wanted is None else wanted


def _tag(element: ElementTree.Element) -> str:
    """Its name without the namespace."""
    return element.tag.rpartition("}")[2]
