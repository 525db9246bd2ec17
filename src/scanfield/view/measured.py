"""Measurements of a run as pictures: as measured, as the result predicts them, and what is left between the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from scanfield.errors import InputError
from scanfield.report.kspace import KSpaceRecord, read_kspace_record
from scanfield.report.record import Projections, read_projections
from scanfield.report.snapshot import usual_window
from scanfield.report.stacks import SliceRecords, read_slices
from scanfield.view.raster import Raster, symmetric

FILES = ("measurements.npz", "kspace.npz", "slices.npz")
FLOOR_DB = -80.0  # what is weaker than this below the largest sample is shown as this


@dataclass(frozen=True, eq=False)
class Series:
    """Some pictures of which one set is shown at a time.

    Args:
        name: 'sinogram', ...
        choices: what can be shown.
        draw: index of a choice -> its pictures and a sentence about them.
    """

    name: str
    choices: tuple[str, ...]
    draw: Callable[[int], tuple[list[Raster], str]]


def measurements(folder: Path, facts: dict[str, Any]) -> list[Series]:
    """What a run's folder holds of its measurements; empty where it holds none.

    Args:
        facts: run.json.

    Raises:
        InputError: a file is damaged.
    """
    found = []
    projections = read_projections(folder, facts.get("measurements"))
    if projections is not None:
        found += _of_projections(projections)
    kspace = read_kspace_record(folder)
    if kspace is not None:
        found.append(_of_kspace(kspace))
    slices = read_slices(folder)
    if slices is not None and slices.shown:
        found.append(_of_slices(slices))
    return found


class Measurements:
    """The measurements of the last run that was asked for, read once; those that were written again are read again."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[Any, ...], list[Series]] | None = None

    def of(self, folder: Path, facts: dict[str, Any]) -> list[Series]:
        """See `measurements`."""
        files = [folder / name for name in FILES]
        key = (folder, *(path.stat().st_mtime_ns if path.is_file() else None for path in files))
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, measurements(folder, facts))
        return self._kept[1]


def pictures(found: list[Series], name: str | None, index: int) -> tuple[list[Raster], dict[str, Any]]:
    """One set of pictures and, for the page, what else there is.

    Args:
        name: of a series; None takes the first.

    Raises:
        InputError: there is no such series or choice.
    """
    names = [series.name for series in found]
    if not found or (name is not None and name not in names):
        raise InputError(
            f"this run keeps no measurements called '{name}'" if name else "this run keeps no measurements"
        )
    series = found[0 if name is None else names.index(name)]
    if not 0 <= index < len(series.choices):
        raise InputError(f"{series.name}: there are {len(series.choices)} to show, none is number {index}")
    shown, note = series.draw(index)
    listed = [{"name": one.name, "choices": list(one.choices)} for one in found]
    return shown, {"series": listed, "shown": series.name, "index": index, "note": note}


def _triple(
    measured: Float[np.ndarray, "rows columns"],
    predicted: Float[np.ndarray, "rows columns"],
    unit: str,
    axes: tuple[str, str],
) -> list[Raster]:
    """Measured and predicted on one grey scale, and predicted minus measured around zero."""
    window, residual = usual_window(measured), predicted - measured
    return [
        Raster("measured", measured, unit, axes, window=window),
        Raster("predicted", predicted, unit, axes, window=window),
        Raster("predicted − measured", residual, unit, axes, window=symmetric(residual), colours="difference"),
    ]


def _of_projections(data: Projections) -> list[Series]:
    views, rows, _ = data.measured.shape
    held = f" Of the {views} views, {len(data.held_out)} were held out." if data.held_out else ""

    def sinogram(row: int) -> tuple[list[Raster], str]:
        shown = _triple(data.measured[:, row], data.predicted[:, row], data.unit, ("view", "detector column"))
        return shown, f"Line integrals: views downwards, detector columns across.{held}"

    def projection(view: int) -> tuple[list[Raster], str]:
        shown = _triple(data.measured[view], data.predicted[view], data.unit, ("detector row", "detector column"))
        fitted = "held out of the fit" if view in data.held_out else "fitted"
        return shown, f"The view at {data.angles_deg[view]:.4g}°, {fitted}."

    found = [Series("sinogram", tuple(f"detector row {k + 1} of {rows}" for k in range(rows)), sinogram)]
    if rows > 1:
        angles = tuple(f"view {k + 1} of {views}, {angle:.4g}°" for k, angle in enumerate(data.angles_deg))
        found.append(Series("projection", angles, projection))
    return found


def _of_kspace(data: KSpaceRecord) -> Series:
    peak = float(data.measured.max()) or 1.0

    def decibel(values: Float[np.ndarray, "views samples"]) -> Float[np.ndarray, "views samples"]:
        least = 10 ** (FLOOR_DB / 20)
        return np.asarray(20 * np.log10(np.maximum(np.abs(values) / peak, least)))

    def draw(row: int) -> tuple[list[Raster], str]:
        named = (
            ("measured", data.measured),
            (f"predicted by {data.names[row]}", data.predicted[row]),
            ("difference of the sizes", data.predicted[row] - data.measured),
        )
        axes, window = ("view", "sample"), (FLOOR_DB, 0.0)
        shown = [Raster(label, decibel(values), "dB", axes, window=window) for label, values in named]
        held = f" {len(data.held_out)} of these views were held out." if data.held_out else ""
        return shown, f"Size of the samples over all coils, in dB of the largest one: views downwards.{held}"

    return Series("k-space", data.names, draw)


def _of_slices(data: SliceRecords) -> Series:
    def draw(place: int) -> tuple[list[Raster], str]:
        measured, before, after = (np.rot90(image) for image in data.images[place])
        axes, residual = ("row", "column"), after - measured
        window = (0.0, max(float(np.percentile(measured, 99.5)), 1e-6))
        unit = "99th percentiles of the stack"
        shown = [
            Raster("measured", measured, unit, axes, window=window),
            Raster("predicted before the fit of poses", before, unit, axes, window=window),
            Raster("predicted after it", after, unit, axes, window=window),
            Raster("predicted − measured", residual, unit, axes, window=symmetric(residual), colours="difference"),
        ]
        one = data.slices[data.shown[place]]
        moved = f"turned by {one.rotation_deg:.2g}° and moved by {one.translation_mm:.2g} mm"
        return shown, f"Stack {one.stack}, slice {one.number}: {moved}; soundness {one.soundness:.2f} (1: usual)."

    named = (data.slices[k] for k in data.shown)
    return Series("slice", tuple(f"stack {one.stack}, slice {one.number}" for one in named), draw)
