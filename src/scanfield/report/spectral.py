"""The figure of a polychromatic reconstruction: the metal region, and attenuation against energy at chosen points.

They are drawn from energies.json and metal.nii.gz of a RUN folder. Nothing in these files is trusted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scanfield.data.nifti import read_nifti
from scanfield.errors import InputError
from scanfield.report.curves import logarithmic
from scanfield.report.plate import Plate
from scanfield.report.record import RERUN, Record
from scanfield.report.style import INK, LINES, NORMAL, SMALL, WIDTH_MM, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = len(LINES)
HEIGHT_MM = 66.0


@dataclass(frozen=True, eq=False)
class EnergyCurves:
    """Attenuation against energy.

    Args:
        energies_kev: (e,).
        reference_kev: the energy of the image.
        curves: by the name of the point, (e,) in 1/mm.
    """

    energies_kev: np.ndarray
    reference_kev: float
    curves: dict[str, np.ndarray]


def read_curves(folder: Path) -> EnergyCurves | None:
    """The curves of a RUN folder; None where it has none.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / "energies.json"
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        energies = np.asarray(facts["energies_kev"], dtype=np.float64)
        curves = {str(p["label"]): np.asarray(p["per_mm"], dtype=np.float64) for p in facts["points"][:MOST_POINTS]}
        found = EnergyCurves(energies, float(facts["reference_kev"]), curves)
        sound = all(np.isfinite(v).all() and v.shape == energies.shape for v in (energies, *curves.values()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"energies.json cannot be read: {error}", where=str(path), fix=RERUN) from None
    if energies.ndim != 1 or not sound:
        raise InputError("energies.json has curves of another length than its energies", where=str(path), fix=RERUN)
    return found


def spectral_plates(folder: Path, record: Record, window: tuple[float, float]) -> Iterator[Plate]:
    """The metal region and the curves, where a run has them."""
    curves, metal = read_curves(folder), _metal_cut(folder, record)
    if curves is None and metal is None:
        return
    panels = (metal is not None) + (curves is not None)
    figure = new_figure(WIDTH_MM * (1.0 if panels == 2 else 0.5), HEIGHT_MM)
    spec = figure.add_gridspec(1, panels, left=0.03 if metal is not None else 0.14, right=0.98, bottom=0.15, top=0.91)
    caption = ""
    if metal is not None:
        _draw_metal(figure.add_subplot(spec[0, 0]), record, metal, window)
        caption += (
            f"Orange: the metal in the {record.views[0].name} plane ({int(metal.sum())} pixels). Numbers in the table "
            "count outside of it. "
        )
    if curves is not None:
        _draw_curves(figure.add_subplot(spec[0, panels - 1]), curves)
        caption += (
            f"Attenuation against energy at {len(curves.curves)} points of the result; dashed, the energy of the image "
            f"({curves.reference_kev:.4g} keV). Energies are told apart only through the spectrum: the curves explain "
            "the projections, and need not be those of a material."
        )
    yield Plate("energies", figure, "Metal region, and attenuation against energy.", caption.strip())


def _metal_cut(folder: Path, record: Record) -> np.ndarray | None:
    """The mask in the first view's plane, as it stands on screen.

    Raises:
        InputError: it lies on another grid than the images.
    """
    path = folder / "metal.nii.gz"
    if not path.is_file() or record.grid is None:
        return None
    found = read_nifti(path)
    if tuple(found.values.shape) != tuple(record.grid.shape):
        raise InputError("the metal mask of this run has another shape than its images", where=str(path), fix=RERUN)
    return np.asarray(record.views[0].cut(found.values.numpy()) > 0.5)


def _draw_metal(axes: Axes, record: Record, metal: np.ndarray, window: tuple[float, float]) -> None:
    view = record.views[0]
    shown = next((picture for picture in record.pictures if picture.kind == "method"), record.pictures[0])
    image = shown.cuts[0]
    height, width = image.shape[0] * view.spacing_mm[0], image.shape[1] * view.spacing_mm[1]
    extent = (0.0, width, height, 0.0)
    axes.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="nearest")
    if metal.any():
        across = (np.arange(metal.shape[1]) + 0.5) * view.spacing_mm[1]
        down = (np.arange(metal.shape[0]) + 0.5) * view.spacing_mm[0]
        if min(metal.shape) > 1:
            axes.contour(across, down, metal.astype(float), levels=[0.5], colors=["#E69F00"], linewidths=0.8)
    axes.set_axis_off()
    title = f"{shown.label}, metal outlined"
    axes.set_title(title, fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=3, parse_math=False)


def _draw_curves(axes: Axes, curves: EnergyCurves) -> None:
    for (label, values), colour in zip(curves.curves.items(), LINES, strict=False):
        axes.plot(curves.energies_kev, values, color=colour, linewidth=0.9, marker="o", markersize=1.8, label=label)
    axes.axvline(curves.reference_kev, color=INK, linewidth=0.5, linestyle="--")
    if all((values > 0).all() for values in curves.curves.values()):
        logarithmic(axes)
    axes.set_xlabel("energy (keV)", fontsize=SMALL, labelpad=1)
    axes.set_ylabel("attenuation (1/mm)", fontsize=SMALL, color=INK)
    axes.grid(color="#d8dee4", linewidth=0.4)
    plain(axes)
    for text in axes.legend(fontsize=SMALL, frameon=False, loc="best").get_texts():
        text.set_parse_math(False)
