"""The figures of a slice-to-volume reconstruction: slices as measured and predicted, motion, and which slices count.

They are drawn from slices.json and slices.npz of a RUN folder. Nothing in these files is trusted.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scanfield.errors import InputError
from scanfield.report.style import INK, LINES, MUTED, NORMAL, SMALL, WIDTH_MM, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKED = 12  # slices in the ranking of outliers
ROWS = ("measured", "before", "after")
TITLES = ("measured", "predicted, before", "predicted, after")


@dataclass(frozen=True, eq=False)
class SliceRecord:
    """What slices.json says about a slice: how far it was turned and its middle moved, and how much it counts."""

    stack: int
    number: int
    rotation_deg: float
    translation_mm: float
    weight: float
    soundness: float
    ncc: float | None


@dataclass(frozen=True, eq=False)
class SliceRecords:
    """All slices, and images (rows, columns) of those `shown`: as measured, and as predicted before and after."""

    slices: tuple[SliceRecord, ...]
    shown: tuple[int, ...]
    images: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]


def read_slices(folder: Path) -> SliceRecords | None:
    """The slices of a RUN folder; None where it has none.

    Raises:
        InputError: a file is damaged, or one contradicts the other.
    """
    table, arrays = folder / "slices.json", folder / "slices.npz"
    if not table.is_file() or not arrays.is_file():
        return None
    try:
        slices = tuple(_record(entry) for entry in json.loads(table.read_text(encoding="utf-8"))["slices"])
        with np.load(arrays, allow_pickle=False) as file:
            shown = tuple(int(k) for k in file["index"])
            images = []
            for place in range(len(shown)):
                a, b, c = (np.asarray(file[f"{name}{place}"], dtype=np.float64) for name in ROWS)
                if a.ndim != 2 or not a.size or a.shape != b.shape or a.shape != c.shape:
                    raise ValueError("the images of a slice differ in shape")
                images.append((a, b, c))
        if not all(0 <= k < len(slices) for k in shown):
            raise ValueError("a slice that is shown does not exist")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(
            f"the slices of this run cannot be read: {error}", where=str(table), fix="repeat the run"
        ) from None
    return SliceRecords(slices, shown, tuple(images))


def slices_figure(records: SliceRecords, *, width_mm: float = WIDTH_MM) -> Figure:
    """Some slices, one a column: as measured, and as the volume predicts them before and after all that was fitted."""
    columns = len(records.shown)
    size = min((width_mm - 18.0) / columns, 34.0)
    height_mm = 3 * size + 16.0
    figure = new_figure(width_mm, height_mm)
    for column, (k, images) in enumerate(zip(records.shown, records.images, strict=True)):
        record = records.slices[k]
        low, high = 0.0, max(float(np.percentile(images[0], 99.5)), 1e-6)
        for row, image in enumerate(images):
            left, bottom = 16.0 + column * size, height_mm - 9.0 - (row + 1) * (size + 1.0)
            place = (left / width_mm, bottom / height_mm, (size - 1.0) / width_mm, size / height_mm)
            axes = figure.add_axes(place)
            axes.imshow(np.rot90(image), cmap="gray", vmin=low, vmax=high)
            axes.set_anchor("N")
            axes.set_axis_off()
            if row == 0:
                title = f"{record.stack}:{record.number}\nsoundness {record.soundness:.2f}"
                axes.set_title(title, fontsize=SMALL, color=INK, pad=2)
            if column == 0:
                axes.text(
                    -0.06, 0.5, TITLES[row], transform=axes.transAxes, rotation=90, ha="right", va="center",
                    fontsize=SMALL, color=INK,
                )  # fmt: skip
    return figure


def motion_figure(records: SliceRecords, *, width_mm: float = WIDTH_MM) -> Figure:
    """How far every slice was turned and moved, stack by stack, and the least sound slices."""
    height_mm = 62.0
    figure = new_figure(width_mm, height_mm)
    spec = figure.add_gridspec(
        1, 4, width_ratios=(1, 1, 0.22, 0.8), wspace=0.22, left=0.05, right=0.98, bottom=0.17, top=0.9
    )
    stacks = sorted({record.stack for record in records.slices})
    for column, (title, name) in enumerate((("rotation (degrees)", "rotation_deg"), ("shift (mm)", "translation_mm"))):
        axes = figure.add_subplot(spec[0, column])
        for stack in stacks:
            mine = [record for record in records.slices if record.stack == stack]
            values = [getattr(record, name) for record in mine]
            colour, style = LINES[stack % len(LINES)], "-" if stack < len(LINES) else "--"
            axes.plot([record.number for record in mine], values, style, color=colour, linewidth=0.8, label=f"{stack}")
        axes.set_title(title, fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=3)
        axes.set_xlabel("slice of its stack", fontsize=SMALL, labelpad=1)
        axes.set_ylim(bottom=0)
        if column == 0:
            axes.legend(title="stack", fontsize=SMALL - 0.5, title_fontsize=SMALL - 0.5, frameon=False, ncols=3)
        plain(axes)
    worst = sorted(records.slices, key=lambda record: record.soundness)[:RANKED][::-1]
    axes = figure.add_subplot(spec[0, 3])  # labels of the bars stand in the column before
    axes.barh(range(len(worst)), [record.soundness for record in worst], color=LINES[0], height=0.7)
    labels = [
        f"{record.stack}:{record.number}" + ("" if record.ncc is None else f"  NCC {record.ncc:.2f}")
        for record in worst
    ]
    axes.set_yticks(range(len(worst)), labels)
    axes.set_xlim(0, 1)
    axes.set_title("least sound", fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=3)
    axes.set_xlabel("weight x scale (1: usual)", fontsize=SMALL, labelpad=1, color=MUTED)
    plain(axes)
    return figure


def _record(entry: Any) -> SliceRecord:
    pose, initial = (np.asarray(entry[key], dtype=np.float64) for key in ("pose", "initial_pose"))
    if pose.shape != (4, 4) or initial.shape != (4, 4) or not (np.isfinite(pose).all() and np.isfinite(initial).all()):
        raise ValueError("a pose is no finite 4x4 matrix")
    turn = initial[:3, :3].T @ pose[:3, :3]
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    shift = np.linalg.norm(pose[:3, 3] - initial[:3, 3])
    weight, soundness, ncc = float(entry["weight"]), float(entry["soundness"]), entry.get("ncc")
    if not (0 <= weight <= 1 and 0 <= soundness <= 1):
        raise ValueError(f"weight and soundness lie between 0 and 1, got {weight:g} and {soundness:g}")
    number = None if ncc is None else float(ncc)
    return SliceRecord(int(entry["stack"]), int(entry["number"]), float(angle), float(shift), weight, soundness, number)
