"""CT projections as one `.npz` file.

    projections       (views, rows, columns) float32, line integrals of the attenuation, dimensionless
    geometry          JSON text of a `ProjectionGeometry`
    noise             JSON text {"kind", "level"}                        optional
    mu_water_per_mm   attenuation of water the scan was made with, 1/mm  optional
    spectrum          (energies, 2) rows of keV and share, of raw polychromatic projections   optional
    provenance        JSON text: how the file came about                 optional

The reader never unpickles, and it compares what an array's header promises with what the file holds before it takes
memory for it.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scanfield.data.guard import check_memory, existing_file, located
from scanfield.data.measurement import Measurement, Noise
from scanfield.data.spectra import Spectrum
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.space.projection import ProjectionGeometry

_HEADER_BYTES = 2**14
_TEXT_BYTES = 2**28
_MAX_VOXELS = 2**31
_NOISES = ("unknown", "none", "gaussian", "poisson")


@dataclass(frozen=True)
class ProjectionFacts:
    """What a projections file knows besides the measurement."""

    mu_water_per_mm: float | None = None
    provenance: dict[str, Any] | None = None


def read_projections(path: str | Path) -> Measurement[ProjectionGeometry]:
    """Reads a scan written by `write_projections` or by anything else that keeps to the format above.

    Raises:
        InputError: the file is missing, truncated or damaged, lacks a key, holds pickled objects, promises more data
            than it has, or its values, geometry and noise contradict each other.
    """
    path = existing_file(path)
    with located(path), _Archive(path) as archive:
        projections = archive.array("projections")
        if projections.dtype.kind not in "iuf":
            raise InputError(f"line integrals are real numbers, got {projections.dtype}", where="projections")
        geometry = _geometry(archive.json("geometry"))
        noise = _noise(archive.json("noise")) if "noise" in archive.names else Noise()
        with np.errstate(over="ignore"):  # becomes infinite, which the measurement refuses
            values = np.array(projections, dtype=np.float32, order="C")
        spectrum = Spectrum.of_table(archive.array("spectrum")) if "spectrum" in archive.names else None
        return Measurement(torch.from_numpy(values), geometry, noise, unit="1", source=str(path), spectrum=spectrum)


def read_facts(path: str | Path) -> ProjectionFacts:
    """The optional facts of a projections file."""
    path = existing_file(path)
    with located(path), _Archive(path) as archive:
        mu_water = None
        if "mu_water_per_mm" in archive.names:
            value = archive.array("mu_water_per_mm")
            if value.shape != () or value.dtype.kind not in "iuf" or not 0 < float(value) < np.inf:
                raise InputError("mu_water_per_mm must be one positive number", where="mu_water_per_mm")
            mu_water = float(value)
        provenance = archive.json("provenance") if "provenance" in archive.names else None
        return ProjectionFacts(mu_water, provenance)


def write_projections(
    path: str | Path, measurement: Measurement[ProjectionGeometry], facts: ProjectionFacts | None = None
) -> None:
    """Writes a scan atomically; the same input always gives the same bytes.

    Raises:
        InputError: the name does not end in .npz, or the file cannot be written.
    """
    if not str(path).endswith(".npz"):
        raise InputError("the name of a projections file ends in .npz", where=str(path))
    facts = facts or ProjectionFacts()
    arrays: dict[str, Any] = {
        "projections": measurement.values.detach().cpu().numpy().astype(np.float32),
        "geometry": json.dumps(measurement.acquisition.to_json()),
        "noise": json.dumps({"kind": measurement.noise.kind, "level": measurement.noise.level}),
    }
    if measurement.spectrum is not None:
        arrays["spectrum"] = measurement.spectrum.table()
    if facts.mu_water_per_mm is not None:
        arrays["mu_water_per_mm"] = facts.mu_water_per_mm
    if facts.provenance is not None:
        arrays["provenance"] = json.dumps(facts.provenance)
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


class _Archive:
    """Guarded reading of a `.npz` file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Archive:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"this is no complete .npz file: {error}", fix="copy the file again, or write it again with numpy.savez"
            ) from error
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def array(self, key: str) -> np.ndarray:
        """One array, read only after its header, the archive's directory and the memory agree on its size."""
        if key not in self.names:
            raise InputError(
                f"the file lacks '{key}'; it holds {', '.join(sorted(self.names)) or 'nothing'}",
                fix=f"add '{key}' with numpy.savez; the format is described in scanfield.data.projections",
            )
        entry = self._zip.getinfo(f"{key}.npy")
        try:
            with self._zip.open(entry) as file:
                shape, fortran, dtype, start = _npy_header(file.read(_HEADER_BYTES))
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if start + size != entry.file_size:
                raise InputError(
                    f"the header promises {size} bytes, the file holds {entry.file_size - start}",
                    where=key,
                    fix="write the file again with numpy.savez",
                )
            check_memory(2 * size, key)
            with self._zip.open(entry) as file:
                file.read(start)
                raw = file.read(size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"the entry is truncated or damaged: {error}", where=key, fix="copy the file again"
            ) from error
        if len(raw) != size:
            raise InputError(f"the entry is truncated: {len(raw)} of {size} bytes", where=key)
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")

    def json(self, key: str) -> dict[str, Any]:
        """One JSON object stored as text."""
        if key in self.names and self._zip.getinfo(f"{key}.npy").file_size > _TEXT_BYTES:
            raise InputError("the text is longer than 256 MiB", where=key)
        value = self.array(key)
        if value.shape != () or value.dtype.kind not in "US":
            raise InputError(
                f"'{key}' must be one JSON text, got an array of {value.dtype} with shape {value.shape}",
                where=key,
                fix=f"numpy.savez(..., {key}=json.dumps(...))",
            )
        try:
            text = value.item()
            facts = json.loads(text.decode() if isinstance(text, bytes) else text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"'{key}' is not valid JSON: {error}", where=key) from error
        if not isinstance(facts, dict):
            raise InputError(f"'{key}' must be a JSON object", where=key)
        return facts


def _npy_header(block: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, Fortran order, dtype, where the data start) from the first bytes of a `.npy` entry."""
    file = io.BytesIO(block)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise InputError(f"arrays of .npy version {version} are not supported", fix="write them with numpy.savez")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"the array's header is damaged: {error}", fix="write the file again") from error
    if dtype.hasobject:
        raise InputError(
            "the array holds pickled Python objects, which could run any code when opened; they are never read",
            fix="store plain numbers and JSON text",
        )
    if min(shape, default=0) < 0:
        raise InputError(f"the array's header has a negative size: {shape}")
    return shape, fortran, dtype, file.tell()


def _geometry(facts: dict[str, Any]) -> ProjectionGeometry:
    try:
        geometry = ProjectionGeometry.from_json(facts)
    except OverflowError as error:
        raise InputError(f"the geometry has a number out of range: {error}", where="geometry") from error
    if geometry.volume.size > _MAX_VOXELS:
        raise InputError(f"a volume of {geometry.volume.shape} voxels is too large", where="geometry.volume.shape")
    return geometry


def _noise(facts: dict[str, Any]) -> Noise:
    kind, level = facts.get("kind"), facts.get("level", 0.0)
    if kind not in _NOISES or not isinstance(level, int | float) or not 0 <= level < np.inf:
        raise InputError(
            f"noise needs a kind ({', '.join(_NOISES)}) and a level of at least 0, got {kind!r} and {level!r}",
            where="noise",
        )
    return Noise(str(kind), float(level))
