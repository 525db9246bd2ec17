"""The figures of a series from k-space: frames, one line over time, errors, what is left of k-space, and the cine.

They are drawn from the images of a RUN folder and its kspace.npz. Nothing in these files is trusted.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from scanfield.data.nifti import read_nifti
from scanfield.errors import InputError
from scanfield.report.plate import Plate
from scanfield.report.record import Record
from scanfield.report.style import (
    ERROR_MAP,
    HELD_OUT,
    INK,
    LINES,
    MUTED,
    NORMAL,
    SMALL,
    WIDTH_MM,
    WITHIN_PERCENT,
    new_figure,
    plain,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6  # frames shown
PANEL_PIXELS = 160  # of the cine, at least
LOOP_S = 2.0  # of the cine, where the time between frames is not known
FASTEST_MS = 20  # browsers slow down what is faster

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Cine:
    """One row of the table as a series, cut through the middle: frames (t, rows, columns) as they stand on screen.

    Args:
        tall: height of a pixel, in widths.
    """

    name: str
    label: str
    kind: str
    frames: Float[Array, "t rows columns"]
    tall: float = 1.0


@dataclass(frozen=True, eq=False)
class KSpaceRecord:
    """What kspace.npz holds (see `tasks.mri_files`)."""

    names: tuple[str, ...]
    measured: Float[Array, "views samples"]
    predicted: Float[Array, "rows views samples"]
    residual: Float[Array, "rows views"]
    held_out: tuple[int, ...]
    bands: Float[Array, " edges"]
    band_measured: Float[Array, " n"]
    band_residual: Float[Array, "rows n"]
    view: Float[Array, " views"]
    unit: str
    moments: Float[Array, " frames"]
    step_s: float


def read_kspace_record(folder: Path) -> KSpaceRecord | None:
    """The k-space of a RUN folder; None where it has none.

    Raises:
        InputError: the file is damaged, or its arrays contradict each other.
    """
    path = folder / "kspace.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            numbers = {
                name: np.asarray(file[name], dtype=np.float64)
                for name in (
                    "measured", "predicted", "residual", "bands", "band_measured", "band_residual", "view", "moments",
                    "step_s",
                )
            }  # fmt: skip
            names = tuple(str(name) for name in file["names"])
            held_out = tuple(int(v) for v in file["held_out"])
            unit = str(file["unit"])
        rows, (views, samples), bands = len(names), numbers["measured"].shape, len(numbers["bands"]) - 1
        shapes = {
            "predicted": (rows, views, samples), "residual": (rows, views), "band_measured": (bands,),
            "band_residual": (rows, bands), "view": (views,), "step_s": (),
        }  # fmt: skip
        wrong = [name for name, shape in shapes.items() if numbers[name].shape != shape]
        if wrong or not rows or not views or not samples or numbers["moments"].ndim != 1 or not numbers["moments"].size:
            raise ValueError(f"its arrays do not fit each other: {', '.join(wrong) or 'something is empty'}")
        if not all(np.isfinite(numbers[name]).all() for name in numbers if name != "step_s"):
            raise ValueError("it has values that are not finite")
        if not all(0 <= v < views for v in held_out):
            raise ValueError("a view that was held out does not exist")
    except (
        OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise InputError(
            f"the k-space of this run cannot be read: {error}", where=str(path), fix="repeat the run"
        ) from None
    step = float(numbers.pop("step_s"))
    return KSpaceRecord(names=names, held_out=held_out, unit=unit, step_s=step, **numbers)


def read_cines(folder: Path, record: Record) -> list[Cine]:
    """The series of a RUN folder, the reference first; empty where its images have no fourth axis.

    Raises:
        InputError: an image cannot be read, or one has another number of frames.
    """
    if not record.views:
        return []
    files = {str(entry.get("name")): str(entry.get("file")) for entry in record.facts.get("images") or []}
    cines = []
    for picture in record.pictures:
        values = read_nifti(folder / Path(files[picture.name]).name, channels=True).values.numpy()
        if values.ndim == 4:
            view = record.views[0]
            frames = np.stack([view.cut(values[..., t]) for t in range(values.shape[-1])]).astype(np.float64)
            tall = view.spacing_mm[0] / view.spacing_mm[1]
            cines.append(Cine(picture.name, picture.label, picture.kind, frames, tall))
    if len({cine.frames.shape for cine in cines}) > 1 or (cines and len(cines) != len(record.pictures)):
        raise InputError("the series of this run differ in length", where=str(folder), fix="repeat the run")
    return cines


def kspace_plates(folder: Path, record: Record, window: tuple[float, float]) -> Iterator[Plate]:
    """Every figure of a series and its k-space; none where there is none."""
    scan = read_kspace_record(folder)
    if scan is None:
        return
    cines = read_cines(folder, record)
    names = ", ".join(cine.label for cine in cines)
    if cines:
        count = len(cines[0].frames)
        often = f"{1000 * scan.step_s:.4g} ms from frame to frame" if math.isfinite(scan.step_s) else "no times known"
        caption = f"Cine of {count} frames ({often}): {names}, magnitudes on one grey scale."
        still, moving = frames_figure(cines, [count // 2], scan, window), animation(cines, window, scan.step_s)
        yield Plate("cine", still, f"Moving images: {names}.", caption, moving)
        chosen = shown_frames(count)
        caption = f"Frames {', '.join(str(t + 1) for t in chosen)} of {count}, magnitudes on one grey scale."
        yield Plate("frames", frames_figure(cines, chosen, scan, window), f"Frames of {names}.", caption)
        line = liveliest_row(cines)
        caption = (
            f"One line of the image (row {line + 1} from the top, the one that changes most) over time, downwards its "
            "columns; below, where there is a reference, image − reference."
        )
        profile = profile_figure(cines, line, scan, window)
        yield Plate("profile", profile, f"A line over time: {names}.", caption)
        if cines[0].kind == "reference" and len(cines) > 1:
            caption = "Root mean square error of every frame, in percent of the reference's largest value."
            yield Plate("frame-errors", error_figure(cines, scan), "Error of every frame.", caption)
    judged = "held-out views" if scan.held_out else "all views"
    caption = (
        f"K-space. Left, over {judged}: root mean square of samples in bands of |k|, as measured, and what every row "
        "leaves of it, predicted − measured. Right: what is left of each view, relative to the view"
    )
    caption += "; held-out views are circled." if scan.held_out else "."
    yield Plate("k-space", residual_figure(scan), "Residual of k-space by frequency and by view.", caption)


def shown_frames(count: int) -> list[int]:
    """Up to `COLUMNS` frames, evenly spread from the first on."""
    shown = min(COLUMNS, count)
    return [k * count // shown for k in range(shown)]


def liveliest_row(cines: Sequence[Cine]) -> int:
    """The row of the first series whose values vary most over time."""
    return int(cines[0].frames.var(axis=0).sum(axis=1).argmax())


def frames_figure(
    cines: Sequence[Cine], chosen: Sequence[int], scan: KSpaceRecord, window: tuple[float, float]
) -> Figure:
    """A series a row, a frame a column; a single frame has the series side by side."""
    single = len(chosen) == 1
    rows, columns = (1, len(cines)) if single else (len(cines), len(chosen))
    height, width = cines[0].frames.shape[1:]
    size = min((WIDTH_MM - 16.0) / columns, 46.0)
    tall = size * height * cines[0].tall / width
    height_mm = rows * (tall + 1.0) + 8.0
    figure = new_figure(WIDTH_MM, height_mm)
    for row in range(rows):
        for column in range(columns):
            cine, frame = (cines[column], chosen[0]) if single else (cines[row], chosen[column])
            place = (14.0 + column * size, height_mm - 7.0 - (row + 1) * (tall + 1.0))
            axes = figure.add_axes(
                (place[0] / WIDTH_MM, place[1] / height_mm, (size - 1.0) / WIDTH_MM, tall / height_mm)
            )
            axes.imshow(cine.frames[frame], cmap="gray", vmin=window[0], vmax=window[1], aspect="auto")
            axes.set_axis_off()
            style: dict[str, Any] = {"fontsize": SMALL, "color": INK, "parse_math": False}
            if row == 0:
                axes.set_title(cine.label if single else _moment(scan, frame), pad=2, **style)
            if column == 0 and not single:
                label = shortened(cine.label, 16)
                axes.text(-0.05, 0.5, label, transform=axes.transAxes, rotation=90, ha="right", va="center", **style)
    return figure


def profile_figure(cines: Sequence[Cine], line: int, scan: KSpaceRecord, window: tuple[float, float]) -> Figure:
    """x-t profiles side by side, and under each its error."""
    reference = cines[0] if cines[0].kind == "reference" else None
    errors = [] if reference is None else [c.frames[:, line] - reference.frames[:, line] for c in cines]
    limit = float(np.percentile(np.abs(np.stack(errors)), WITHIN_PERCENT)) or 1.0 if errors else 0.0
    rows = 2 if reference is not None else 1
    figure = new_figure(WIDTH_MM, 12.0 + 34.0 * rows)
    spec = figure.add_gridspec(rows, len(cines), left=0.06, right=0.99, bottom=0.12 / rows + 0.02, top=0.9, wspace=0.08)
    low, high = float(scan.moments[0]), float(scan.moments[-1])
    for column, cine in enumerate(cines):
        axes = figure.add_subplot(spec[0, column])
        box = (low, high if high > low else low + 1, cine.frames.shape[2], 0)
        shown: dict[str, Any] = {"aspect": "auto", "extent": box, "interpolation": "nearest"}
        axes.imshow(cine.frames[:, line].T, cmap="gray", vmin=window[0], vmax=window[1], **shown)
        axes.set_title(shortened(cine.label, 24), fontsize=SMALL, color=INK, pad=2, parse_math=False)
        below = axes
        if reference is not None and column > 0:
            below = figure.add_subplot(spec[1, column])
            below.imshow(errors[column].T, cmap=ERROR_MAP, vmin=-limit, vmax=limit, **shown)
            axes.set_xticks([])
        for one in {axes, below}:
            plain(one)
            one.set_yticks([])
        below.set_xlabel(_axis_name(scan.unit), fontsize=SMALL, labelpad=1, color=MUTED)
    return figure


def error_figure(cines: Sequence[Cine], scan: KSpaceRecord) -> Figure:
    """RMS error against the frame, a line for each series."""
    reference, *others = cines
    peak = float(reference.frames.max()) or 1.0
    figure = new_figure(WIDTH_MM, 50.0)
    axes = figure.add_axes((0.08, 0.17, 0.68, 0.76))
    for number, cine in enumerate(others):
        rms = 100 * np.sqrt(((cine.frames - reference.frames) ** 2).mean(axis=(1, 2))) / peak
        axes.plot(scan.moments, rms, color=LINES[number % len(LINES)], linewidth=1.0, label=shortened(cine.label, 24))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_axis_name(scan.unit), fontsize=SMALL, labelpad=1)
    axes.set_ylabel("RMS error (%)", fontsize=SMALL, labelpad=1)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    plain(axes)
    return figure


def residual_figure(scan: KSpaceRecord) -> Figure:
    """What is left of k-space in bands of |k| (logarithmic), and view by view."""
    figure = new_figure(WIDTH_MM, 58.0)
    spec = figure.add_gridspec(1, 2, left=0.07, right=0.99, bottom=0.16, top=0.92, wspace=0.16)
    axes = figure.add_subplot(spec[0, 0])
    middle = (scan.bands[1:] + scan.bands[:-1]) / 2
    floor = max(float(scan.band_measured.max()) * 1e-8, 1e-30)
    axes.semilogy(middle, np.maximum(scan.band_measured, floor), color=INK, linewidth=1.2, label="measured")
    for number, (name, values) in enumerate(zip(scan.names, scan.band_residual, strict=True)):
        colour, label = LINES[number % len(LINES)], f"left by {shortened(name, 20)}"
        axes.semilogy(middle, np.maximum(values, floor), color=colour, linewidth=0.9, label=label)
    axes.set_xlabel("|k| (cycles/mm)", fontsize=SMALL, labelpad=1)
    axes.set_title("by frequency", fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=3)
    axes.legend(fontsize=SMALL - 0.5, frameon=False)
    plain(axes)
    axes = figure.add_subplot(spec[0, 1])
    order = np.argsort(scan.view, kind="stable")
    for number, values in enumerate(scan.residual):
        axes.semilogy(
            scan.view[order], np.maximum(values[order], 1e-8), ".", color=LINES[number % len(LINES)], markersize=2
        )
    if scan.held_out:
        for values in scan.residual:
            held = list(scan.held_out)
            axes.semilogy(
                scan.view[held], np.maximum(values[held], 1e-8), "o", markersize=3.5, markerfacecolor="none",
                markeredgecolor=HELD_OUT, markeredgewidth=0.6,
            )  # fmt: skip
    axes.set_xlabel(_axis_name(scan.unit), fontsize=SMALL, labelpad=1)
    axes.set_title("by view", fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=3)
    plain(axes)
    return figure


def animation(cines: Sequence[Cine], window: tuple[float, float], step_s: float) -> bytes:
    """The series side by side as an endless GIF, at their own speed where it is known."""
    from PIL import Image

    count, rows, columns = cines[0].frames.shape
    height, width = rows * cines[0].tall, float(columns)
    zoom = max(1.0, PANEL_PIXELS / max(height, width))
    size = (max(1, round(zoom * width)), max(1, round(zoom * height)))
    low, high = window
    drawn = []
    for t in range(count):
        grey = [(255 * np.clip((c.frames[t] - low) / (high - low), 0, 1)).round().astype(np.uint8) for c in cines]
        panels = [np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.NEAREST)) for panel in grey]
        strip = np.concatenate([np.pad(panel, ((0, 0), (0, 2))) for panel in panels], axis=1)
        drawn.append(Image.fromarray(_titled(strip, [cine.label for cine in cines])))
    milliseconds = 1000 * (step_s if math.isfinite(step_s) and step_s > 0 else LOOP_S / count)
    buffer = io.BytesIO()
    duration = max(FASTEST_MS, round(milliseconds))
    drawn[0].save(buffer, format="GIF", save_all=True, append_images=drawn[1:], loop=0, duration=duration)
    return buffer.getvalue()


def _titled(strip: UInt8[Array, "rows columns"], labels: Sequence[str]) -> UInt8[Array, "more columns"]:
    """The labels in a band above the images."""
    from PIL import Image, ImageDraw

    band = Image.new("L", (strip.shape[1], 14))
    pen, width = ImageDraw.Draw(band), strip.shape[1] // len(labels)
    for number, label in enumerate(labels):
        pen.text((number * width + 3, 1), shortened(label, max(4, width // 7)), fill=255)
    return np.concatenate([np.asarray(band), strip])


def _moment(scan: KSpaceRecord, frame: int) -> str:
    if frame >= len(scan.moments) or scan.unit == "frame":
        return f"frame {frame + 1}"
    return f"{scan.moments[frame]:.3g} {'s' if scan.unit == 's' else 'of the cycle'}"


def _axis_name(unit: str) -> str:
    return {"s": "time (s)", "cycle": "phase of the cycle"}.get(unit, "frame")
