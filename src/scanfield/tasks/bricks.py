"""A volume that does not fit in memory, in bricks: surveyed, fitted one by one in parallel, and written as one file.

    survey      every brick once: its range and the concentration of its spectrum        -> its share of the bytes
    fit         every brick on its own, in `jobs` processes                              -> its bytes, in a work folder
    write       the finished bricks, one after the other, into one .sfz                  -> `decompress_bricks`

Memory: a process holds one brick at a time. It peaks at `memory_bound(edge)` bytes, whatever the volume's size; with J
jobs there are J such processes beside the one that deals the work.

What is finished stays in the work folder until the file is complete. A stopped run is continued from there; bricks
whose bytes do not fit their checksum are fitted again. The file is the same whatever the number of jobs and
interruptions.
"""

from __future__ import annotations

import concurrent.futures
import json
import math
import multiprocessing
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scanfield.baselines.codecs import CODECS
from scanfield.codec.bricks import BRICK, Bricks, outer_header
from scanfield.codec.container import Part, Section, pack, write_parts
from scanfield.codec.residual import step_of_bound
from scanfield.data.files import checksum
from scanfield.data.stored import StoredType
from scanfield.data.volumes import Volume, open_volume
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.run import Run
from scanfield.tasks.brick_fits import (
    LEAST_BYTES,
    Plan,
    Score,
    Survey,
    brick_path,
    constant_brick,
    finished,
    fit_brick,
    model_of,
    share,
    survey_brick,
)
from scanfield.tasks.compression import check_compresses
from scanfield.tasks.model import check_model, model_file
from scanfield.tasks.table import Column, Row, Table

EDGE = 128  # voxels of a brick along an axis, at most
BYTES_PER_VOXEL = 400  # of a brick, at the peak: the residual's coder
BASE_BYTES = 450 * 2**20  # of a process that has loaded everything
_ENTRY_BYTES = 3  # of a brick's length in the head


@dataclass(frozen=True, eq=False)
class CompressedBricks:
    """What `compress_bricks` leaves.

    Args:
        table: the file, and its rivals of the same size.
        total, original_bytes: bytes of the file, and of the voxels in their own type.
        bricks: how the volume was cut.
        constants: bricks of one value.
        kind: type of the voxels.
    """

    table: Table
    total: int
    original_bytes: int
    bricks: Bricks
    constants: int
    kind: StoredType


def memory_bound(edge: int) -> int:
    """Bytes that a process needs at most for bricks of `edge` voxels along an axis: 400 a voxel, and 450 MiB."""
    return BASE_BYTES + BYTES_PER_VOXEL * edge**3


def compress_bricks(
    source: str | Path,
    method: str,
    config: Any,
    run: Run,
    path: str | Path,
    *,
    max_bytes: int | None = None,
    bits_per_voxel: float | None = None,
    psnr_db: float | None = None,
    model: str | Path | None = None,
    max_error: float | None = None,
    edge: int = EDGE,
    jobs: int = 1,
    resume: bool = False,
    baselines: bool = True,
) -> CompressedBricks | None:
    """Compresses a NIfTI file (of three or four axes) or an OME-Zarr folder brick by brick.

    Args:
        source: the volume (see `data.volumes`).
        method, config: of a method for compression.
        path: the file; the work folder is beside it, its name ends in '.work'.
        max_bytes: of the file, without the residual; or
        bits_per_voxel: the same in another unit; or
        psnr_db: what every brick reaches, with the volume's range as peak; fitted repeatedly, with growing budgets.
            By default a 64th of two bytes a voxel.
        model: file of a trained model, for a method that needs one; its weights are left out.
        max_error: bound on every voxel's error, in the volume's unit; 0 is lossless, for whole numbers.
        edge: voxels of a brick along an axis, at most.
        jobs: processes that fit bricks at the same time.
        resume: whether the bricks that an earlier call with the same arguments finished are kept.
        baselines: whether to code the bricks with standard codecs of the same number of bytes, too.

    Returns:
        None if the run was stopped: what is finished waits in the work folder.

    Raises:
        InputError: the method is none for compression; the volume cannot be read; the budget does not hold the head; a
            bound is impossible; or the work folder belongs to another call.
    """
    check_compresses(method)
    trained = None if model is None else model_file(model).resolve()
    check_model(method, model_of(None if trained is None else str(trained)))
    if sum(size is not None for size in (max_bytes, bits_per_voxel, psnr_db)) > 1:
        raise ValueError("the size follows from one of max_bytes, bits_per_voxel and psnr_db")
    work = Path(f"{path}.work")
    plan = Plan(
        source=str(Path(source).resolve()),
        expanded=str(work / "volume.nii") if str(source).endswith(".gz") else None,
        edge=edge,
        method=method,
        config=config,
        seed=run.seed,
        device=str(run.device),
        backend=run.backend,
        max_error=max_error,
        work=str(work),
        baselines=baselines,
        psnr_db=psnr_db,
        model=None if trained is None else str(trained),
    )
    _open_work(plan, resume=resume)
    volume, bricks = plan.open()
    original = bricks.voxels * np.dtype(volume.kind).itemsize
    wanted = bricks.voxels * (2 * 8 / 64 if bits_per_voxel is None else bits_per_voxel) / 8
    with _workers(plan, jobs, run) as deal:
        with run.timed("survey"):
            surveys = _surveys(plan, bricks, deal, run)
        if surveys is None:
            return None
        plan = _described(plan, volume, surveys)
        budgets = _budgets(plan, bricks, volume, surveys, int(wanted) if max_bytes is None else max_bytes)
        with run.timed("fit"):
            scores = _fits(plan, bricks, deal, budgets, surveys, run)
        if scores is None:
            return None
    header = _header(plan, bricks, volume)
    parts = [_part(plan, number, surveys[number], score) for number, score in enumerate(scores)]
    total = write_parts(path, header, parts)
    shutil.rmtree(work)
    constants = sum(budget == 0 for budget in budgets)
    table = _table(plan, bricks, volume, scores, total, original, run)
    return CompressedBricks(table, total, original, bricks, constants, volume.kind)


# The work folder ------------------------------------------------------------------------------------------------------


def _open_work(plan: Plan, *, resume: bool) -> None:
    """Makes the work folder, or checks that it belongs to the same call."""
    work, record = Path(plan.work), Path(plan.work) / "plan.json"
    facts = asdict(plan) | {"config": to_json(plan.config)}
    if Path(plan.source).is_file():
        facts["sha256"] = checksum(plan.source)
    if plan.model is not None:
        facts["model_sha256"] = checksum(plan.model)
    if work.exists() and not resume:
        raise InputError(
            "an earlier run left bricks here", where=str(work), fix="continue it with --resume, or remove the folder"
        )
    if resume and not record.is_file():
        raise InputError("there is nothing to resume", where=str(work), fix="leave out --resume")
    if resume:
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before != json.loads(json.dumps(facts)):
            raise InputError(
                "the bricks here were made with other settings, or of another volume",
                where=str(work),
                fix="repeat the command they were made with, or remove the folder and start again",
            )
        for part in work.glob(".*.part*"):
            part.unlink()
        return
    try:
        work.mkdir()
    except OSError as error:
        raise InputError(f"cannot make the work folder: {error.strerror}", where=str(work)) from None
    with write_atomically(record) as temporary:
        temporary.write_text(json.dumps(facts), encoding="utf-8")
    open_volume(plan.source, expanded=None if plan.expanded is None else Path(plan.expanded))


def _surveys(plan: Plan, bricks: Bricks, deal: Deal, run: Run) -> list[Survey] | None:
    path = Path(plan.work) / "survey.json"
    if path.is_file():
        try:
            found = [Survey(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError):
            found = []
        if len(found) == bricks.total:
            return found
    surveys: dict[int, Survey] = {}
    start = time.perf_counter()
    for number, survey in deal(survey_brick, [(plan, number) for number in range(bricks.total)]):
        surveys[number] = survey
        _tell(run, "survey", len(surveys), bricks.total, start, {})
    if len(surveys) < bricks.total:
        return None
    ordered = [surveys[number] for number in range(bricks.total)]
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps([asdict(survey) for survey in ordered]), encoding="utf-8")
    return ordered


def _fits(
    plan: Plan, bricks: Bricks, deal: Deal, budgets: list[int], surveys: list[Survey], run: Run
) -> list[Score] | None:
    flat = [n for n, survey in enumerate(surveys) if survey.low == survey.high]
    scores = {n: constant_brick(plan, surveys[n])[1] for n in flat}
    scores |= {n: score for n in range(bricks.total) if n not in scores and (score := finished(plan, n)) is not None}
    if len(scores) > len(flat):
        run.note(f"{len(scores) - len(flat)} of {bricks.total - len(flat)} bricks were there already")
    left = [n for n in range(bricks.total) if n not in scores]
    start, kept = time.perf_counter(), len(scores)
    for at, score in deal(fit_brick, [(plan, n, budgets[n], surveys[n]) for n in left]):
        if score is None:
            continue
        scores[left[at]] = score
        squares = sum(s.squares for s in scores.values()) / sum(surveys[n].voxels for n in scores)
        _tell(run, "bricks", len(scores) - kept, len(left), start, {"root mean square error": math.sqrt(squares)})
    return [scores[n] for n in range(bricks.total)] if len(scores) == bricks.total else None


def _tell(run: Run, stage: str, step: int, of: int, start: float, loss: dict[str, float]) -> None:
    seconds = time.perf_counter() - start
    run.tell({"stage": stage, "step": step, "of": of, "seconds": seconds, "loss": loss, "held_out": None})


# The processes --------------------------------------------------------------------------------------------------------

Deal = Callable[[Callable[..., Any], list[tuple[Any, ...]]], Iterator[tuple[int, Any]]]
_stop = threading.Event()  # of a worker process


@contextmanager
def _workers(plan: Plan, jobs: int, run: Run) -> Iterator[Deal]:
    """Gives out a function that calls another one with many arguments: (place in the list, result), as they finish.

    With one job everything happens in this process. It ends early, without an error, when the run is stopped.
    """
    if jobs == 1:
        yield lambda function, calls: _one_by_one(function, calls, run)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    threads = max(1, torch.get_num_threads() // jobs)
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (threads, stop)) as pool:
        try:
            yield lambda function, calls: _in_parallel(pool, function, calls, jobs, run)
        finally:
            if run.stop.is_set():
                stop.set()
            pool.shutdown(cancel_futures=True)


def _one_by_one(function: Callable[..., Any], calls: list[tuple[Any, ...]], run: Run) -> Iterator[tuple[int, Any]]:
    for number, arguments in enumerate(calls):
        if run.stop.is_set():
            return
        yield number, _call(function, arguments, run.stop)


def _in_parallel(
    pool: concurrent.futures.Executor,
    function: Callable[..., Any],
    calls: list[tuple[Any, ...]],
    jobs: int,
    run: Run,
) -> Iterator[tuple[int, Any]]:
    waiting: dict[concurrent.futures.Future[Any], int] = {}
    rest = iter(enumerate(calls))
    while not run.stop.is_set():
        while len(waiting) < 2 * jobs and (following := next(rest, None)) is not None:
            number, arguments = following
            waiting[pool.submit(_call, function, arguments)] = number
        if not waiting:
            return
        done, _ = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_COMPLETED)
        for future in done:
            yield waiting.pop(future), future.result()


def _begin(threads: int, stop: Any) -> None:
    """A worker's first act: Ctrl-C is for the process that deals the work, which passes it on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)

    def pass_on() -> None:
        stop.wait()
        _stop.set()

    threading.Thread(target=pass_on, daemon=True).start()


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], stop: threading.Event = _stop) -> Any:
    plan = arguments[0]
    return function(*arguments, Run(device=torch.device(plan.device), seed=plan.seed, backend=plan.backend, stop=stop))


# The file and its numbers ---------------------------------------------------------------------------------------------


def _described(plan: Plan, volume: Volume, surveys: list[Survey]) -> Plan:
    """The plan with what all bricks' headers share."""
    whole = volume.kind != "float32"
    low, high = min(s.low for s in surveys), max(s.high for s in surveys)
    facts = {"type": volume.kind, "low": int(low) if whole else low, "high": int(high) if whole else high}
    shared: dict[str, Any] = dict(facts)
    if plan.max_error is not None:
        shared |= {"bound": plan.max_error, "step": step_of_bound(plan.max_error, whole=whole, low=low, high=high)}
    model = model_of(plan.model)
    known = {} if model is None else to_json(model.config)
    config = {
        name: part
        for name, part in to_json(plan.config).items()
        if name != "budget_bytes" and (name not in known or known[name] != part)
    }
    header = {"method": plan.method, "config": config, "facts": shared}
    return replace(plan, facts=facts, shared=header | ({} if model is None else {"model": model.key}))


def _header(plan: Plan, bricks: Bricks, volume: Volume) -> dict[str, Any]:
    return outer_header(bricks, plan.shared, unit=volume.unit)


def _budgets(plan: Plan, bricks: Bricks, volume: Volume, surveys: list[Survey], most: int) -> list[int]:
    """Bytes of every brick, after the head and the bricks of one value."""
    empty = [Section(str(number), BRICK, b"") for number in range(bricks.total)]
    head = len(pack(_header(plan, bricks, volume), empty)) + _ENTRY_BYTES * bricks.total
    constant = len(pack({"constant": plan.facts["high"]}, []))
    if plan.psnr_db is not None:  # the search starts where it starts
        return [0 if survey.low == survey.high else LEAST_BYTES for survey in surveys]
    left = most - head - constant * bricks.total
    if left < 0:
        raise InputError(
            f"{most} bytes do not even hold the head of {bricks.total} bricks, which takes {most - left}",
            fix="allow more bytes, or larger bricks",
        )
    return share(surveys, left)


def _part(plan: Plan, number: int, survey: Survey, score: Score) -> Part:
    def payload() -> bytes:
        flat = survey.low == survey.high
        return constant_brick(plan, survey)[0] if flat else brick_path(plan, number).read_bytes()

    return Part(str(number), BRICK, score.size, score.checksum, payload)


def _table(
    plan: Plan, bricks: Bricks, volume: Volume, scores: list[Score], total: int, original: int, run: Run
) -> Table:
    span = float(plan.facts["high"] - plan.facts["low"])
    table = Table(
        [
            Column("bytes", "file", "bytes", "", "everything the decoder needs", 0),
            Column("ratio", "ratio", "", "higher", f"original: {original} bytes", 1),
            Column("psnr_db", "PSNR", "dB", "higher", f"peak {span:.4g} {volume.unit}, the volume's range"),
            Column("max_error", "largest error", volume.unit, "lower", "", 2),
            Column("encode_s", "encode", "s", "", "of all bricks, one after the other", 2),
            Column("decode_s", "decode", "s", "", "", 2),
        ]
    )

    def row(size: int, parts: list[dict[str, float]]) -> dict[str, float]:
        mean = sum(part["squares"] for part in parts) / bricks.voxels
        return {
            "bytes": size,
            "ratio": original / size,
            "psnr_db": 10 * math.log10(span**2 / mean) if mean > 0 else math.inf,
            "max_error": max(part["largest"] for part in parts),
            "encode_s": sum(part["encode_s"] for part in parts),
            "decode_s": sum(part["decode_s"] for part in parts),
        }

    own = row(total, [asdict(score) for score in scores])
    table.rows.append(Row(plan.method, api.card(plan.method).label, "method", own))
    if not plan.baselines or plan.max_error is not None:
        return table
    for name, codec in CODECS.items():
        coded = [score.rivals[name] for score in scores if name in score.rivals]
        if len(coded) < len(scores):
            run.note(f"{codec.label} is missing from the table: it cannot code every brick in so few bytes.")
            continue
        size = total + round(sum(part["size"] for part in coded)) - sum(score.size for score in scores)
        table.rows.append(Row(name, codec.label, "baseline", row(size, coded)))
    return table
