"""The figures of generated sequences: sheets of shapes and masks, and descriptors in time beside the training's.

They are drawn from canvas.npz and descriptors.csv of a run folder. Nothing in these files is trusted.

canvas.npz holds `frames` (sequences, frames, bytes), eight voxels a byte, `shape` (3,) and `affine` (4, 4) of the
voxels, and `times_s` (frames,).
"""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from scanfield.data.sequences import MaskSequence
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.report.plate import Plate
from scanfield.report.record import RERUN, file_inside
from scanfield.report.style import INK, LINES, MUTED, NORMAL, SMALL, WIDTH_MM, new_figure, plain
from scanfield.space.grid import Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DESCRIPTOR_FILE, CANVAS_FILE = "descriptors.csv", "canvas.npz"
COLUMNS = ("set", "sequence", "frame", "time_s", "volume_mm3", "surface_mm2", "sphericity", "components")
SETS = ("training", "generated")
SHOWN_FRAMES, SHOWN_SEQUENCES = 6, 24
MICROSCOPIC_MM3 = 1e-3  # objects smaller than this are described in micrometres
INSIDE = 0.35  # grey of a mask
Drawing = Callable[[Bool[np.ndarray, "n0 n1 n2"]], Float[np.ndarray, "rows columns"]]
# Heading of every descriptor, and the power of length that it grows with.
LABELS = {
    "volume_mm3": ("volume ({}³)", 3),
    "surface_mm2": ("surface ({}²)", 2),
    "sphericity": ("sphericity", 0),
    "components": ("components", 0),
}


@dataclass(frozen=True, eq=False)
class GeneratedRecord:
    """What a folder says about generated sequences.

    Args:
        sequences: some of them.
        times_s: the moments of their frames.
        descriptors: of both `SETS`, by name, (sequences, frames).
    """

    sequences: tuple[MaskSequence, ...]
    times_s: Float[np.ndarray, " t"]
    descriptors: dict[str, dict[str, Float[np.ndarray, "n t"]]]


def write_canvas(path: Path, frames: Bool[np.ndarray, "n t n0 n1 n2"], grid: Grid, times_s: Sequence[float]) -> None:
    """Writes masks of sequences as `read_generated` reads them."""
    packed = np.packbits(frames.reshape(*frames.shape[:2], -1), axis=-1)
    with write_atomically(path) as temporary:
        np.savez_compressed(temporary, frames=packed, shape=grid.shape, affine=grid.affine, times_s=times_s)


def read_generated(folder: Path, facts: dict[str, Any]) -> GeneratedRecord | None:
    """The figures' data in a folder with the facts of run.json; None where nothing was generated.

    Raises:
        InputError: a file is missing, damaged, or contradicts the others.
    """
    if facts.get("synthesis") is None:
        return None
    path = file_inside(folder, CANVAS_FILE)
    try:
        with np.load(path, allow_pickle=False) as file:
            packed, times = np.asarray(file["frames"]), np.asarray(file["times_s"], dtype=np.float64)
            grid = Grid.from_json({"shape": file["shape"], "affine": file["affine"]})
        size = -(-grid.size // 8)
        if packed.shape[2:] != (size,) or times.shape != packed.shape[1:2] or len(times) < 2 or not len(packed):
            raise ValueError(f"frames of shape {packed.shape} do not suit times of shape {times.shape}")
        bits = np.unpackbits(packed, axis=-1, count=grid.size).astype(bool)
        frames = torch.from_numpy(bits.reshape(*packed.shape[:2], *grid.shape))
        sequences = tuple(MaskSequence(part, grid, float(times[1] - times[0]), str(path)) for part in frames)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"the shapes cannot be read: {error}", where=str(path), fix=RERUN) from None
    descriptors = _descriptors(file_inside(folder, DESCRIPTOR_FILE), len(times))
    return GeneratedRecord(sequences[:SHOWN_SEQUENCES], times, descriptors)


def _descriptors(path: Path, frames: int) -> dict[str, dict[str, np.ndarray]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found: dict[str, dict[str, np.ndarray]] = {}
        for kind in SETS:
            own = [row for row in rows if row["set"] == kind]
            found[kind] = {name: np.array([float(row[name]) for row in own]).reshape(-1, frames) for name in LABELS}
            if not len(found[kind]["volume_mm3"]):
                raise ValueError(f"there are no rows of the set '{kind}'")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"the descriptors cannot be read: {error!r}", where=str(path), fix=RERUN) from None
    return found


def length_unit(volumes_mm3: Sequence[float] | np.ndarray) -> tuple[str, float]:
    """The unit of length that suits objects of such volumes, and how many of it make a millimetre: mm, or µm."""
    return ("µm", 1e3) if float(np.median(volumes_mm3)) < MICROSCOPIC_MM3 else ("mm", 1.0)


def synthesis_plates(folder: Path, facts: dict[str, Any]) -> Iterator[Plate]:
    """Every figure of generated sequences; none where there are none. Errors: `read_generated`."""
    record = read_generated(folder, facts)
    if record is None:
        return
    count = f"{len(record.sequences)} generated sequence{'s' * (len(record.sequences) > 1)}"
    end = f"Time runs to the right, from 0 to {record.times_s[-1]:.4g} s; all at one scale"
    length, scale = length_unit(record.descriptors["training"]["volume_mm3"])
    box, grid = _around([frame.numpy() for s in record.sequences for frame in s.frames]), record.sequences[0].grid
    width = (box[0].stop - box[0].start) * grid.spacing_mm[0] * scale
    end += f", every picture {width:.3g} {length} wide."
    caption = f"{count}, seen along the third voxel axis, lit from the upper left. {end}"
    yield Plate("contact-sheet", contact_sheet(record.sequences), "Generated shapes in time.", caption)
    caption = f"The masks themselves: of every frame the slice across the third voxel axis that holds most of it. {end}"
    yield Plate("masks", contact_sheet(record.sequences, drawing=section), "Slices of the generated masks.", caption)
    caption = "Descriptors in time: mean and standard deviation over the generated sequences (blue), and over the "
    caption += "shapes that the model makes of its training sequences' codes (grey)."
    yield Plate("descriptors", descriptor_figure(record), "Descriptors of generated and training shapes.", caption)


def contact_sheet(
    sequences: Sequence[MaskSequence], *, drawing: Drawing | None = None, width_mm: float = WIDTH_MM
) -> Figure:
    """A few moments of each sequence in a row, two or more sequences beside each other.

    Args:
        drawing: what is shown of a mask: `shaded` (without it) or `section`.
    """
    draw = shaded if drawing is None else drawing
    frames = sequences[0].frames.shape[0]
    shown = np.unique(np.linspace(0, frames - 1, min(frames, SHOWN_FRAMES)).round().astype(int))
    masks = [[s.frames[k].numpy() for k in shown] for s in sequences]
    box = _around([mask for moments in masks for mask in moments])
    pictures = [np.concatenate([draw(mask[box]) for mask in moments], axis=1) for moments in masks]
    rows, columns = pictures[0].shape
    across = max(1, min(len(pictures), round(2 * SHOWN_FRAMES / len(shown))))
    down = -(-len(pictures) // across)
    gap, title = 2.0, 3.4
    strip = (width_mm - (across + 1) * gap) / across
    height = strip * rows / columns
    height_mm = down * (height + title) + gap
    figure = new_figure(width_mm, height_mm)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, across)
        left, top = gap + column * (strip + gap), title + row * (height + title)
        axes = figure.add_axes((left / width_mm, 1 - (top + height) / height_mm, strip / width_mm, height / height_mm))
        axes.imshow(np.ma.masked_invalid(picture), cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_axis_off()
        axes.text(0, 1.01, f"{number + 1}", transform=axes.transAxes, fontsize=SMALL, color=MUTED, va="bottom")
    return figure


def _around(masks: Sequence[np.ndarray]) -> tuple[slice, slice, slice]:
    """The part of a lattice that holds all objects, and a voxel around."""
    anywhere = np.logical_or.reduce(masks)
    where = [np.flatnonzero(anywhere.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    a, b, c = (slice(max(0, int(w[0]) - 1), int(w[-1]) + 2) for w in where)
    return a, b, c


def shaded(mask: Bool[np.ndarray, "n0 n1 n2"], *, finer: int = 3) -> Float[np.ndarray, "rows columns"]:
    """A shape as it looks from the end of its third axis, by the slope of its surface (Lambert); NaN beside it."""
    padded = np.pad(mask, 1).astype(np.float32)
    volume = ndimage.gaussian_filter(ndimage.zoom(padded, finer, order=1, grid_mode=True, mode="nearest"), 0.6 * finer)
    inside = volume > 0.5
    seen = inside.any(axis=2)
    first = inside.shape[2] - 1 - inside[:, :, ::-1].argmax(axis=2)
    beyond = np.minimum(first + 1, inside.shape[2] - 1)
    a, b = (np.take_along_axis(volume, k[:, :, None], axis=2)[:, :, 0] for k in (first, beyond))
    depth = np.where(seen, first + (a - 0.5) / np.maximum(a - b, 1e-6), np.nan)
    slopes = []
    for axis in (0, 1):
        forward = np.diff(depth, axis=axis, append=np.nan)
        backward = np.diff(depth, axis=axis, prepend=np.nan)
        both = np.where(np.isnan(forward), backward, np.where(np.isnan(backward), forward, (forward + backward) / 2))
        slopes.append(np.nan_to_num(both))
    light = np.array([-0.4, 0.45, 0.8]) / math.sqrt(0.4**2 + 0.45**2 + 0.8**2)
    towards = -slopes[0] * light[0] - slopes[1] * light[1] + light[2]
    brightness = 0.15 + 0.8 * np.clip(towards / np.sqrt(1 + slopes[0] ** 2 + slopes[1] ** 2), 0, 1)
    picture: np.ndarray = np.where(seen, brightness, np.nan)
    return picture.T[::-1]


def section(mask: Bool[np.ndarray, "n0 n1 n2"]) -> Float[np.ndarray, "rows columns"]:
    """The slice across the third axis that holds most of a mask, turned as `shaded` is; NaN beside it."""
    cut = mask[:, :, int(mask.sum(axis=(0, 1)).argmax())]
    grey: np.ndarray = np.where(cut, INSIDE, np.nan)
    return grey.T[::-1]


def descriptor_figure(record: GeneratedRecord, *, width_mm: float = WIDTH_MM) -> Figure:
    """Mean and standard deviation of every descriptor against time, generated beside training."""
    height_mm, left, gap = 46.0, 11.0, 10.0
    width = (width_mm - left - 3 - (len(LABELS) - 1) * gap) / len(LABELS)
    figure = new_figure(width_mm, height_mm)
    unit, scale = length_unit(record.descriptors["training"]["volume_mm3"])
    for place, (name, (label, power)) in enumerate(LABELS.items()):
        x = left + place * (width + gap)
        axes = figure.add_axes((x / width_mm, 9.0 / height_mm, width / width_mm, 30.0 / height_mm))
        for kind, colour in zip(SETS, (MUTED, LINES[0]), strict=True):
            values = record.descriptors[kind][name] * scale**power
            mean, deviation = values.mean(axis=0), values.std(axis=0)
            axes.plot(record.times_s, mean, color=colour, linewidth=1.2, label=kind)
            axes.fill_between(record.times_s, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(label.format(unit), fontsize=NORMAL, fontweight="bold", color=INK, loc="left", pad=3)
        axes.set_xlabel("time (s)", fontsize=SMALL, labelpad=1)
        axes.locator_params(nbins=4)
        axes.yaxis.get_offset_text().set_fontsize(SMALL - 0.5)
        plain(axes)
        if place == 0:
            axes.legend(fontsize=SMALL - 0.5, frameon=False, loc="best")
    return figure
