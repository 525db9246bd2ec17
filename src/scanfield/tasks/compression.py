"""From a volume to a file of given size and back: fit, write, decode the file, judge what was decoded.

    compress      volume -> .sfz; the numbers belong to what `decompress` makes of the file, never to the fit
    decompress    .sfz -> volume in its original type, on its own grid, a part of it, or any other grid

Near-lossless: with a bound E the file also holds a residual. With the step s = 2 E + 1 for whole numbers, s = 2 E for
others, v the image and f the field,

    k = round(v / s),  k_0 = round(f / s),     stored: k - k_0,     decoded: s k,     |v - s k| <= E

The decoder must find the same k_0: it evaluates the field in double precision, and a checksum over all k_0 proves it.
"""

from __future__ import annotations

import copy
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import nn

from scanfield.baselines.codecs import CODECS, code
from scanfield.codec.container import Section, read_head, read_section
from scanfield.codec.entropy import decode_integers, encode_integers
from scanfield.codec.field_file import RateReport, read_field, write_field
from scanfield.codec.weights import exact_rungs
from scanfield.data.guard import check_memory
from scanfield.data.scan import Scan
from scanfield.data.stored import StoredType
from scanfield.errors import InputError, MissingExtra
from scanfield.methods import api
from scanfield.metrics.image import compare
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.table import Column, Row, Table

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
RESIDUAL, RESIDUAL_KIND = "residual", 5
SMALLEST_RATIO = 4  # beyond this a field is the wrong tool
_FIRST_BYTES = 2048  # of a search for a PSNR: less is mostly header
_FITS = 6  # of a search for a PSNR
_DB_PER_DOUBLING = 2.0  # of the bytes, a low guess: it makes the search careful
_CLASSES = 8  # of the residual, by how much the field changes around a voxel
_CHUNK = 2**16


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `compress` leaves.

    Args:
        result: the fitted field, with the weights of the file.
        report: where the file's bytes are.
        table: the file and its rivals of the same size.
        original_bytes: of the voxels, in their own type.
    """

    result: Reconstruction
    report: RateReport
    table: Table
    original_bytes: int


@dataclass(frozen=True, eq=False)
class Decoded:
    """What `decompress` leaves: values in the original type, their grid and their unit."""

    values: Shaped[np.ndarray, "n0 n1 n2"]
    grid: Grid
    unit: str


@on_the_run_s_backend
def compress(
    data: Scan,
    method: str,
    config: Any,
    run: Run,
    path: str | Path,
    *,
    stored_type: StoredType = "float32",
    max_bytes: int | None = None,
    psnr_db: float | None = None,
    max_error: float | None = None,
    baselines: bool = True,
) -> Compressed:
    """Fits a field of a given size to a volume and writes it.

    Args:
        data: the volume; of one channel.
        method: name of a method for compression.
        config: its configuration.
        stored_type: type that the volume had, and gets back.
        max_bytes: of the file, without the residual; by default as `config` says.
        psnr_db: in place of it, the PSNR to reach (peak: the volume's range); fitted repeatedly, with growing budgets.
        max_error: bound on every voxel's error, in the volume's unit: the file also gets a coded residual. 0 is
            lossless, for whole numbers.
        baselines: whether to run standard codecs at the same number of bytes.

    Raises:
        InputError: the method is none for compression, the volume does not suit it, or what is asked for is impossible.
    """
    if api.card(method).task != "compression":
        raise InputError(
            f"method '{method}' does not compress", fix="`scanfield list --task compression` lists those that do"
        )
    api.check_accepts(method, data.kind)
    if max_bytes is not None and psnr_db is not None:
        raise ValueError("the size follows from max_bytes or from psnr_db, not from both")
    low, high = float(data.values.min()), float(data.values.max())
    whole = stored_type != "float32"
    if whole and not torch.equal(data.values, data.values.round()):
        raise InputError(f"the volume does not hold whole numbers, as {stored_type} does", where=data.source)
    if max_error is not None and not (max_error > 0 or (whole and max_error == 0)):
        fix = "give a bound above 0; lossless is for volumes of whole numbers"
        raise InputError(f"the bound on the error cannot be {max_error:g} for {stored_type}", fix=fix)
    original = data.grid.size * np.dtype(stored_type).itemsize
    facts = {"type": stored_type, "low": int(low) if whole else low, "high": int(high) if whole else high}

    def attempt(budget: int | None) -> tuple[Reconstruction, Decoded, RateReport]:
        settings = config if budget is None else replace(config, budget_bytes=budget)
        with run.timed("fit"):
            result = api.load(method).fit(settings, data, run)
            report = _write(path, result, data, facts, max_error)
        with run.timed("decode"):
            return result, decompress(path), report

    if psnr_db is None:
        result, decoded, report = attempt(max_bytes)
    else:
        result, decoded, report = _search(attempt, data, psnr_db, original, run)
    table = _table(run, method, data, decoded, report, original)
    if baselines and max_error is None and not run.stop.is_set():
        _rivals(table, data, report.total, original, run)
    return Compressed(result, report, table, original)


def decompress(
    path: str | Path,
    *,
    grid: Grid | None = None,
    box: Box | None = None,
    device: torch.device | str = "cpu",
) -> Decoded:
    """The volume in a file, in its original type.

    Args:
        grid: where to render; by default the volume's own grid. Elsewhere there is the field, without a residual.
        box: a part of the own grid: first voxel and first voxel beyond, by axis. Only this part is rendered.

    Raises:
        InputError: the file is missing or damaged, the box does not fit, or this machine's arithmetic does not
            reproduce the field that a residual was made for.
    """
    if grid is not None and box is not None:
        raise ValueError("either a grid or a box of the own grid can be rendered")
    result = read_field(path, device)
    facts = result.provenance
    own = result.spec.grid
    grid = own if grid is None else grid
    grid = grid if box is None else part_of(grid, box)
    check_memory(16 * (own if "bound" in facts else grid).size, path)
    if "bound" in facts and (box is not None or grid.same_as(own)):
        values = _with_residual(path, result, facts)
        if box is not None:
            values = values[tuple(slice(start, stop) for start, stop in box)]
    else:
        values = result.render(grid).numpy()
    return Decoded(_restored(values, facts, str(path)), grid, result.spec.unit)


def part_of(grid: Grid, box: Box) -> Grid:
    """The grid of some of a grid's voxels.

    Raises:
        InputError: the box reaches beyond the grid, or is empty.
    """
    for (start, stop), n, axis in zip(box, grid.shape, "ijk", strict=True):
        if not 0 <= start < stop <= n:
            raise InputError(
                f"the box needs 0 <= first < last + 1 <= {n} along {axis}, got {start}:{stop}", where="--box"
            )
    return grid.part([start for start, _ in box], [stop - start for start, stop in box])


# The file -------------------------------------------------------------------------------------------------------------


def _write(
    path: str | Path, result: Reconstruction, data: Scan, facts: dict[str, Any], max_error: float | None
) -> RateReport:
    tail = api.load(result.method).shared_parts(result.config)
    rungs = exact_rungs(result.field.state_dict(), tail=tail)
    if rungs is None:
        raise ValueError(f"method '{result.method}' returned weights that were not quantised")
    sections: list[Section] = []
    if max_error is not None:
        step = 2 * int(max_error) + 1 if facts["type"] != "float32" else 2 * max_error
        predicted = _whole_steps(result, step)
        wanted = np.rint(data.values.double().numpy() / step).astype(np.int64)
        residual = wanted - predicted
        payload = encode_integers([residual[part] for part in _classes(predicted)])
        sections.append(Section(RESIDUAL, RESIDUAL_KIND, payload))
        facts = facts | {"bound": max_error, "step": step, "crc": _crc(predicted)}
    return write_field(path, result, rungs=rungs, tail=tail, facts=facts, sections=sections)


def _with_residual(path: str | Path, result: Reconstruction, facts: dict[str, Any]) -> np.ndarray:
    head = read_head(path)
    entry = next((e for e in head.entries if e.name == RESIDUAL), None)
    try:
        step, crc = float(facts["step"]), int(facts["crc"])
    except (KeyError, TypeError, ValueError):
        entry = None
    if entry is None or not step > 0:
        raise InputError("the file is damaged: its residual is missing or not described", where=str(path))
    predicted = _whole_steps(result, step)
    if _crc(predicted) != crc:
        raise InputError(
            "this machine computes another field than the one the residual was made for",
            where=str(path),
            fix="decode with --spacing-mm or --like for the field alone, or on the machine that wrote the file",
        )
    classes = _classes(predicted)
    parts = decode_integers(read_section(path, entry).payload, [int(c.sum()) for c in classes], where=str(path))
    for chosen, residual in zip(classes, parts, strict=True):
        predicted[chosen] += residual
    return predicted * step


def _whole_steps(result: Reconstruction, step: float) -> Int[np.ndarray, "n0 n1 n2"]:
    """k_0: the field at its own voxels, in double precision on the CPU, in whole steps."""
    grid = result.spec.grid
    field: nn.Module = copy.deepcopy(result.field).cpu().double()
    parts = []
    with torch.no_grad():
        for start in range(0, grid.size, _CHUNK):
            flat = torch.arange(start, min(start + _CHUNK, grid.size))
            parts.append(field(grid.to_world(grid.voxels(flat).double()))[:, 0])
    values = torch.cat(parts).reshape(grid.shape).numpy()
    return np.rint(values / step).astype(np.int64)


def _classes(predicted: Int[np.ndarray, "n0 n1 n2"]) -> list[np.ndarray]:
    """Voxels by the number of bits of |k_0 - neighbour|, summed over the axes: errors are larger where it changes."""
    activity = np.zeros(predicted.shape, dtype=np.int64)
    for axis in range(3):
        activity += np.abs(np.diff(predicted, axis=axis, prepend=np.take(predicted, [0], axis=axis)))
    bits = np.zeros(predicted.shape, dtype=np.int64)
    for k in range(_CLASSES - 1):
        bits += activity >= 1 << k
    return [bits == k for k in range(_CLASSES)]


def _crc(predicted: np.ndarray) -> int:
    return zlib.crc32(predicted.astype("<i8").tobytes())


def _restored(values: np.ndarray, facts: dict[str, Any], where: str) -> np.ndarray:
    """Values in the type the file names; rounded and cut to the original range if they are whole numbers."""
    try:
        kind, low, high = str(facts["type"]), float(facts["low"]), float(facts["high"])
    except (KeyError, TypeError, ValueError):
        kind = ""
    if kind not in get_args(StoredType):
        raise InputError(
            "the file does not hold a compressed volume", where=where, fix="`scanfield inspect` shows what it holds"
        )
    clipped = np.clip(values, low, high)
    return (clipped if kind == "float32" else np.rint(clipped)).astype(kind)


# The numbers ----------------------------------------------------------------------------------------------------------


def _search(attempt: Any, data: Scan, target_db: float, original: int, run: Run) -> tuple[Any, Decoded, RateReport]:
    """Growing budgets until the PSNR is reached."""
    budget = max(original // 128, _FIRST_BYTES)
    for _ in range(_FITS):
        result, decoded, report = attempt(budget)
        found = compare(decoded.values, data.values).psnr_db
        if found >= target_db or run.stop.is_set():
            return result, decoded, report
        run.note(f"{report.total} bytes gave {found:.2f} dB")
        budget = round(budget * min(max(2 ** ((target_db - found) / _DB_PER_DOUBLING), 1.2), 4.0))
        if budget > original / SMALLEST_RATIO:
            break
    raise InputError(
        f"{target_db:g} dB need more than a quarter of the volume's {original} bytes, or more than {_FITS} fits",
        fix="ask for a lower --psnr, or bound the error with --max-error",
    )


def _table(run: Run, method: str, data: Scan, decoded: Decoded, report: RateReport, original: int) -> Table:
    span = float(data.values.max() - data.values.min())
    table = Table(
        [
            Column("bytes", "file", "bytes", "", "everything the decoder needs", 0),
            Column("ratio", "ratio", "", "higher", f"original: {original} bytes", 1),
            Column("psnr_db", "PSNR", "dB", "higher", f"peak {span:.4g} {data.unit}, the volume's range"),
            Column("ssim", "SSIM", "", "higher", "all voxels", 3),
            Column("max_error", "largest error", data.unit, "lower", "", 2),
            Column("encode_s", "encode", "s", "", "", 2),
            Column("decode_s", "decode", "s", "", "", 2),
        ]
    )
    seconds = run.timings["fit"], run.timings["decode"]
    values = _scores(data, decoded.values, report.total, original, *seconds)
    table.rows.append(Row(method, api.card(method).label, "method", values))
    return table


def _scores(
    data: Scan, values: np.ndarray, size: int, original: int, encode_s: float, decode_s: float
) -> dict[str, float]:
    found = compare(values, data.values)
    return {
        "bytes": size,
        "ratio": original / size,
        "psnr_db": found.psnr_db,
        "ssim": found.ssim,
        "max_error": float(np.abs(values.astype(np.float64) - data.values.double().numpy()).max()),
        "encode_s": encode_s,
        "decode_s": decode_s,
    }


def _rivals(table: Table, data: Scan, max_bytes: int, original: int, run: Run) -> None:
    """Standard codecs with at most the same number of bytes."""
    for name, codec in CODECS.items():
        run.tell({"baseline": codec.label})
        start = time.perf_counter()
        try:
            coded = code(name, data.values.numpy(), max_bytes)
        except MissingExtra as error:
            run.note(f"Standard codecs are missing from the table: {error.what}.")
            return
        except InputError as error:
            run.note(f"{codec.label} is missing from the table: {error.what}.")
            continue
        run.timings[name] = time.perf_counter() - start
        scores = _scores(data, coded.values, coded.size, original, coded.encode_s, coded.decode_s)
        table.rows.append(Row(name, codec.label, "baseline", scores))
