"""Raw MRI: k-space with its trajectory, field of view and orientation, and the `.npz` file of it.

    kspace            (views, coils, samples) complex64
    trajectory        (views, samples, 2 or 3), cycles/mm along the volume's voxel axes
    grid              JSON text {"shape", "affine"} of the volume, or in its place
    matrix            (2 or 3,) voxels along its axes, and
    field_of_view_mm  (2 or 3,) their extent: a box centred at the world's origin
    sensitivities     (coils, n0, n1, n2) complex64, on the volume         optional
    time_s            (views,) time of each view's first sample, s         optional
    dwell             time between samples, s                              optional
    frame             (views,) frame of the series that a view belongs to  optional
    frames            number of frames                                     optional
    noise_sigma       standard deviation of the noise's real part          optional
    truth             (frames, n0, n1, n2) complex64, of a simulation      optional
    r_peaks_s         (peaks,) times of the ECG's R-peaks, s               optional
    provenance        JSON text: how the file came about                   optional

A view is one readout: a spoke, an interleaf, a line. Other formats: `rawmri_bart`, `rawmri_hdf5`.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from scanfield.data.guard import check_memory, existing_file, located
from scanfield.data.measurement import Measurement, Noise
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry

_KEYS = (
    "kspace", "trajectory", "grid", "matrix", "field_of_view_mm", "sensitivities", "time_s", "dwell", "frame", "frames",
    "noise_sigma", "truth", "r_peaks_s",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class KSpace(Measurement[KSpaceGeometry]):
    """k-space as measured: `values` (views, coils, samples) complex64, in the image's unit.

    Args:
        sensitivities: (coils, n0, n1, n2) complex64 on the acquisition's volume, or None: to be estimated.
        r_peaks_s: (peaks,) float64, times of the ECG's R-peaks on the clock of `acquisition.time_s`, or None.

    Raises:
        InputError: the values are not complex, or a shape does not fit the acquisition.
    """

    sensitivities: Tensor | None = None
    r_peaks_s: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.values.is_complex():
            raise InputError(f"k-space has complex values, got {self.values.dtype}", where=self.source or "kspace")
        super().__post_init__()
        maps, wanted = self.sensitivities, (self.acquisition.coils, *self.acquisition.volume.shape)
        if maps is not None and (not maps.is_complex() or tuple(maps.shape) != wanted):
            raise InputError(
                f"sensitivities must be complex with shape {wanted} (coils and volume), got {maps.dtype} with "
                f"{tuple(maps.shape)}",
                where=self.source or "sensitivities",
            )
        if maps is not None and not bool(torch.isfinite(maps).all()):
            raise InputError("the sensitivities have values that are NaN or infinite", where=self.source)


def read_kspace(path: str | Path) -> KSpace:
    """Reads k-space from the `.npz` format above.

    Raises:
        InputError: the file is missing or damaged, lacks an array or the volume's dimensions, or its arrays contradict
            each other.
    """
    path = existing_file(path)
    with located(path):
        held = _arrays(path)
        for name in ("kspace", "trajectory"):
            if name not in held:
                raise InputError(
                    f"the file lacks '{name}'", fix="the format is described in scanfield.data.rawmri", where=name
                )
        values = checked_kspace(held["kspace"])
        time_s = held.get("time_s")
        geometry = KSpaceGeometry(
            trajectory=checked_trajectory(held["trajectory"], values.shape[0], values.shape[2]),
            coils=values.shape[1],
            volume=_volume(held),
            time_s=None if time_s is None else _real("time_s", time_s),
            dwell_s=_scalar(held, "dwell"),
            frame=held.get("frame"),
            frames=_count(held, "frames"),
        )
        peaks = held.get("r_peaks_s")
        sigma = _scalar(held, "noise_sigma")
        if sigma is not None and not 0 <= sigma < np.inf:
            raise InputError(f"the noise has a standard deviation of at least 0, got {sigma}", where="noise_sigma")
        noise = Noise() if sigma is None else Noise("gaussian", sigma) if sigma > 0 else Noise("none")
        return KSpace(
            torch.from_numpy(values),
            geometry,
            noise,
            unit="arbitrary",
            source=str(path),
            sensitivities=_complex(held, "sensitivities"),
            r_peaks_s=None if peaks is None else _real("r_peaks_s", peaks),
        )


def read_truth(path: str | Path) -> Complex[Tensor, "frames n0 n1 n2"] | None:
    """The true series that a simulated `.npz` file carries, or None.

    Raises:
        InputError: the file is missing or damaged, or the truth is no complex series of images.
    """
    path = existing_file(path)
    with located(path):
        truth = _complex(_arrays(path), "truth")
        if truth is not None and truth.ndim != 4:
            raise InputError(f"the truth has four axes (frames and volume), got {truth.ndim}", where="truth")
        return truth


def read_array(path: str | Path, name: str) -> np.ndarray:
    """One of the arrays of an `.npz` file of the format, such as the sensitivities of another scan.

    Raises:
        InputError: the file is missing or damaged, or does not hold it.
    """
    path = existing_file(path)
    with located(path):
        held = _arrays(path)
        if name not in held:
            raise InputError(f"the file lacks '{name}'", where=name)
        return held[name]


def write_kspace(
    path: str | Path,
    kspace: KSpace,
    *,
    truth: Complex[Tensor, "frames n0 n1 n2"] | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Writes the `.npz` format above, atomically.

    Raises:
        InputError: the name does not end in .npz, or the file cannot be written.
    """
    if not str(path).endswith(".npz"):
        raise InputError("the name of a k-space file ends in .npz", where=str(path), fix=f"{path}.npz")
    geometry = kspace.acquisition
    arrays: dict[str, Any] = {
        "kspace": kspace.values.detach().cpu().numpy().astype(np.complex64),
        "trajectory": geometry.trajectory,
        "grid": json.dumps(geometry.volume.to_json()),
        "frame": geometry.frame_of_view,
        "frames": geometry.frame_count,
    }
    if kspace.noise.kind in ("none", "gaussian"):
        arrays["noise_sigma"] = kspace.noise.level
    if kspace.sensitivities is not None:
        arrays["sensitivities"] = kspace.sensitivities.detach().cpu().numpy().astype(np.complex64)
    if truth is not None:
        arrays["truth"] = truth.detach().cpu().numpy().astype(np.complex64)
    if provenance is not None:
        arrays["provenance"] = json.dumps(provenance)
    for name, value in (
        ("time_s", geometry.time_s),
        ("dwell", geometry.dwell_s),
        ("r_peaks_s", kspace.r_peaks_s),
    ):
        if value is not None:
            arrays[name] = value
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # noise does not compress


def checked_kspace(values: np.ndarray) -> np.ndarray:
    """(views, coils, samples) complex64, whatever precision the file has.

    Raises:
        InputError: it is not complex, has other axes, or one of them is empty.
    """
    if values.dtype.kind != "c":
        raise InputError(f"k-space has complex values, got {values.dtype}", where="kspace")
    if values.ndim != 3 or 0 in values.shape:
        empty = "zero coils" if values.ndim == 3 and values.shape[1] == 0 else "shape " + str(values.shape)
        raise InputError(
            f"k-space has shape (views, coils, samples), at least one of each, got {empty}", where="kspace"
        )
    with np.errstate(over="ignore"):  # becomes infinite, which the measurement refuses
        return np.array(values, dtype=np.complex64, order="C")


def checked_trajectory(trajectory: np.ndarray, views: int, samples: int) -> np.ndarray:
    """(views, samples, 3) float64; a trajectory of two columns gets a third of zeros.

    Raises:
        InputError: it does not have one point for every sample.
    """
    if trajectory.dtype.kind not in "iuf" or trajectory.ndim != 3 or trajectory.shape[2] not in (2, 3):
        raise InputError(
            f"a trajectory is real with shape (views, samples, 2 or 3), got {trajectory.dtype} with {trajectory.shape}",
            where="trajectory",
        )
    if trajectory.shape[:2] != (views, samples):
        raise InputError(
            f"the trajectory has {trajectory.shape[0]} views of {trajectory.shape[1]} samples, k-space has {views} of "
            f"{samples}",
            where="trajectory",
            fix="give one point for every sample of a coil",
        )
    out = np.zeros((views, samples, 3))
    out[..., : trajectory.shape[2]] = trajectory
    return out


def centred_volume(matrix: Any, field_of_view_mm: Any) -> Grid:
    """The grid of a field of view centred at the world's origin; two numbers each mean one slice, 1 mm thick.

    Raises:
        InputError: not two or three positive numbers each.
    """
    try:
        counts = [int(n) for n in np.asarray(matrix).reshape(-1)]
        extent = [float(x) for x in np.asarray(field_of_view_mm, dtype=np.float64).reshape(-1)]
    except (TypeError, ValueError) as error:
        raise InputError(f"matrix and field of view are numbers: {error}") from None
    if len(counts) != len(extent) or len(counts) not in (2, 3) or min(counts) < 1 or not 0 < min(extent) < np.inf:
        raise InputError(
            f"matrix and field of view need two or three positive numbers each, got {counts} and {extent} mm",
            where="field_of_view_mm",
        )
    counts, extent = (counts, extent) if len(counts) == 3 else ([*counts, 1], [*extent, 1.0])
    spacing = tuple(x / n for x, n in zip(extent, counts, strict=True))
    return Grid.centred((counts[0], counts[1], counts[2]), (spacing[0], spacing[1], spacing[2]))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the format, never unpickled, their size checked before memory is taken."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_memory(2 * sum(entry.file_size for entry in archive.infolist()), path)
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in _KEYS if name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"the file is truncated, damaged or no .npz: {error}", fix="copy the file again, or write it with numpy"
        ) from None


def _volume(held: dict[str, np.ndarray]) -> Grid:
    if "grid" in held:
        try:
            return Grid.from_json(json.loads(str(held["grid"][()])))
        except ValueError as error:
            raise InputError(f"'grid' is not valid JSON: {error}", where="grid") from None
    if "matrix" in held and "field_of_view_mm" in held:
        return centred_volume(held["matrix"], held["field_of_view_mm"])
    raise InputError(
        "the k-space has no dimensions: the file says neither 'grid' nor 'matrix' and 'field_of_view_mm'",
        where="grid",
        fix="numpy.savez(..., matrix=[192, 192], field_of_view_mm=[240, 240])",
    )


def _real(name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "iuf":
        raise InputError(f"'{name}' holds real numbers, got {value.dtype}", where=name)
    return value.astype(np.float64)


def _scalar(held: dict[str, np.ndarray], name: str) -> float | None:
    if name not in held:
        return None
    value = _real(name, held[name])
    if value.size != 1:
        raise InputError(f"'{name}' is one number, got shape {value.shape}", where=name)
    return float(value.reshape(()))


def _count(held: dict[str, np.ndarray], name: str) -> int | None:
    value = _scalar(held, name)
    if value is not None and not (value >= 1 and value.is_integer()):
        raise InputError(f"'{name}' is a whole number from 1, got {value:g}", where=name)
    return None if value is None else int(value)


def _complex(held: dict[str, np.ndarray], name: str) -> Tensor | None:
    if name not in held:
        return None
    if held[name].dtype.kind != "c":
        raise InputError(f"'{name}' holds complex numbers, got {held[name].dtype}", where=name)
    return torch.from_numpy(held[name].astype(np.complex64))
