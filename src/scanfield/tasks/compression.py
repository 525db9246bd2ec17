"""From a volume to a file of given size and back: fit, write, decode the file, judge what was decoded.

    compress      volume -> .sfz; the numbers belong to what `decompress` makes of the file, never to the fit
    decompress    .sfz -> volume in its original type, on its own grid, a part of it, or any other grid

Near-lossless: with a bound E the file also holds a residual after which no voxel errs by more (`codec.residual`).
Volumes that do not fit in memory are for `tasks.bricks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Shaped

from scanfield.baselines.codecs import CODECS, code
from scanfield.codec.container import Container, Section, read_container, write_container
from scanfield.codec.field_file import RateReport, container_of, field_of, own_weights, rate_report
from scanfield.codec.residual import decode_residual, encode_residual, step_of_bound
from scanfield.codec.weights import exact_rungs
from scanfield.data.guard import check_memory
from scanfield.data.scan import Scan
from scanfield.data.stored import StoredType
from scanfield.errors import InputError, MissingExtra
from scanfield.methods import api
from scanfield.metrics.image import compare
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.box import Box
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model, check_model
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.table import Column, Row, Table

Found = TypeVar("Found")

AMORTISED_OVER = 100  # volumes: what a model's bytes are shared by in the table
LARGEST_WHOLE = 2**24  # float32, in which images are held, knows all whole numbers up to here
SMALLEST_RATIO = 4  # beyond this a field is the wrong tool
_FIRST_BYTES = 2048  # of a search for a PSNR: less is mostly header
_FITS = 6  # of a search for a PSNR
_DB_PER_DOUBLING = 2.0  # of the bytes, a low guess: it makes the search careful


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

    @property
    def kind(self) -> StoredType:
        """The type of the values."""
        kind: StoredType = next(kind for kind in get_args(StoredType) if kind == self.values.dtype.name)
        return kind


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
    model: Model | None = None,
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
        model: of a method that is trained: what its files leave out.

    Raises:
        InputError: the method is none for compression, the model is missing or another method's, the volume does not
            suit it, or what is asked for is impossible.
    """
    check_compresses(method)
    api.check_accepts(method, data.kind)
    check_model(method, model)
    if max_bytes is not None and psnr_db is not None:
        raise ValueError("the size follows from max_bytes or from psnr_db, not from both")
    facts = facts_of(data, stored_type)
    if max_error is not None:  # an impossible bound is refused before the fit
        step_of_bound(max_error, whole=stored_type != "float32", low=facts["low"], high=facts["high"])
        if stored_type != "float32" and max(abs(facts["low"]), abs(facts["high"])) > LARGEST_WHOLE:
            raise InputError("whole numbers beyond 2^24 are not held exactly in memory", fix="compress in --bricks")
    original = data.grid.size * np.dtype(stored_type).itemsize

    def attempt(budget: int | None) -> tuple[Reconstruction, Decoded, RateReport]:
        settings = config if budget is None else replace(config, budget_bytes=budget)
        with run.timed("fit"):
            result = api.load(method).fit(settings, data, run, prior=model)
            content = content_of(result, data.values.numpy(), facts, max_error, model)
            write_container(path, content.header, content.sections)
        with run.timed("decode"):
            return result, decompress(path, device=run.device, model=model), rate_report(path)

    if psnr_db is None:
        result, decoded, report = attempt(max_bytes)
    else:

        def judged(budget: int) -> tuple[tuple[Reconstruction, Decoded, RateReport], int, float]:
            found = attempt(budget)
            return found, found[2].total, compare(found[1].values, data.values).psnr_db

        result, decoded, report = reach(judged, psnr_db, original, run)
    table = _table(run, method, data, decoded, report, original)
    if model is not None:
        _amortise(table, model.size)
    if baselines and max_error is None and not run.stop.is_set():
        _rivals(table, data, report.total, original, run)
    return Compressed(result, report, table, original)


def check_compresses(method: str) -> None:
    """Raises InputError unless a method is one for compression."""
    if api.card(method).task != "compression":
        raise InputError(
            f"method '{method}' does not compress", fix="`scanfield list --task compression` lists those that do"
        )


def decompress(
    path: str | Path,
    *,
    grid: Grid | None = None,
    box: Box | None = None,
    device: torch.device | str = "cpu",
    model: Model | None = None,
) -> Decoded:
    """The volume in a file, in its original type.

    Args:
        grid: where to render; by default the volume's own grid. Elsewhere there is the field, without a residual.
        box: a part of the own grid: first voxel and first voxel beyond, by axis. Only this part is rendered.
        model: the one the file was written with, if it was written with one.

    Raises:
        InputError: the file is missing or damaged or needs another model, the box does not fit, or this machine's
            arithmetic does not reproduce the field that a residual was made for.
    """
    if grid is not None and box is not None:
        raise ValueError("either a grid or a box of the own grid can be rendered")
    content = read_container(path)
    result = field_of(content, device, where=str(path), model=model)
    facts = result.provenance
    own = result.spec.grid
    grid = own if grid is None else grid
    grid = grid if box is None else part_of(grid, box)
    check_memory(16 * (own if "bound" in facts else grid).size, path)
    if "bound" in facts and (box is not None or grid.same_as(own)):
        values = own_values(result, content, where=str(path))
        if box is not None:
            values = values[tuple(slice(start, stop) for start, stop in box)]
    else:
        values = restored(result.render(grid).numpy(), facts, where=str(path))
    return Decoded(values, grid, result.spec.unit)


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


def facts_of(data: Scan, stored_type: StoredType) -> dict[str, Any]:
    """What a file says about its volume: type and range.

    Raises:
        InputError: the type is one of whole numbers, the values are none.
    """
    whole = stored_type != "float32"
    if whole and not torch.equal(data.values, data.values.round()):
        raise InputError(f"the volume does not hold whole numbers, as {stored_type} does", where=data.source)
    low, high = float(data.values.min()), float(data.values.max())
    return {"type": stored_type, "low": int(low) if whole else low, "high": int(high) if whole else high}


def content_of(
    result: Reconstruction,
    values: Shaped[np.ndarray, "n0 n1 n2"],
    facts: dict[str, Any],
    max_error: float | None,
    model: Model | None = None,
) -> Container:
    """What the file of a fitted field holds.

    Args:
        values: the volume.
        facts: of the volume, from `facts_of`.
        max_error: bound on every voxel's error; the residual that keeps it is among the sections.
        model: the result's, if it was trained: its weights are left out.

    Raises:
        InputError: see `codec.residual.step_of_bound`.
    """
    tail = api.load(result.method).shared_parts(result.config)
    rungs = exact_rungs(own_weights(result, model), tail=tail)
    if rungs is None:
        raise ValueError(f"method '{result.method}' returned weights that were not quantised")
    sections: list[Section] = []
    if max_error is not None:
        sections, more = encode_residual(result, values, max_error, facts)
        facts = facts | more
    return container_of(result, rungs, tail=tail, facts=facts, sections=sections, model=model)


def own_values(result: Reconstruction, content: Container, *, where: str = "") -> Shaped[np.ndarray, "n0 n1 n2"]:
    """The volume that a file holds, on its own grid and in its own type, with the residual if there is one.

    Args:
        result: `field_of(content)`.

    Raises:
        InputError: see `codec.residual.decode_residual`; the file does not hold a compressed volume.
    """
    facts = result.provenance
    if "bound" in facts:
        payloads = {section.name: section.payload for section in content.sections}
        return restored(decode_residual(result, payloads, facts, where=where), facts, where=where)
    return restored(result.render().numpy(), facts, where=where)


def restored(
    values: Shaped[np.ndarray, "*n"], facts: Mapping[str, Any], *, where: str = ""
) -> Shaped[np.ndarray, "*n"]:
    """Values in the type that `facts` names, cut to the original range, and rounded if they are whole numbers.

    Raises:
        InputError: the facts are not those of a volume.
    """
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


def reach(attempt: Callable[[int], tuple[Found, int, float]], target_db: float, original: int, run: Run) -> Found:
    """Growing budgets until a PSNR is reached.

    Args:
        attempt: budget in bytes -> what came of it, its bytes, its PSNR.
        original: bytes of the voxels.

    Raises:
        InputError: it takes more than a quarter of the original bytes, or too many attempts.
    """
    budget = max(original // 128, min(_FIRST_BYTES, original // (2 * SMALLEST_RATIO)))
    for _ in range(_FITS):
        found, size, psnr_db = attempt(budget)
        if psnr_db >= target_db or run.stop.is_set():
            return found
        run.note(f"{size} bytes gave {psnr_db:.2f} dB")
        budget = round(budget * min(max(2 ** ((target_db - psnr_db) / _DB_PER_DOUBLING), 1.2), 4.0))
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


def _amortise(table: Table, model_bytes: int) -> None:
    """The model's bytes beside the file's, and the file with its share of the model."""
    note = "its weights; one for all volumes that are compressed with it"
    table.columns[0] = replace(table.columns[0], note="everything the decoder needs besides the model")
    table.columns[1:1] = [
        Column("model_bytes", "model", "bytes", "", note, 0),
        Column("amortised_bytes", "with model", "bytes", "", f"shared by {AMORTISED_OVER} volumes", 0),
    ]
    row = table.rows[0].values
    row |= {"model_bytes": model_bytes, "amortised_bytes": row["bytes"] + model_bytes / AMORTISED_OVER}


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
