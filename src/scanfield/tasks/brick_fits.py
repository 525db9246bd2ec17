"""One brick of a large volume: what it needs, its fit, its bytes. These functions run in worker processes.

Nothing but numbers and names goes in and out: a brick is read from the volume's own file, and its bytes and scores are
left in the work folder, the scores last, with a checksum of the bytes. What is there and fits its checksum is finished.

Shares: brick b gets bytes in proportion to |x_b| / D(x_b), as the blocks of `sci` do (`codec.partition`): its voxels
over the concentration of its spectrum, on intensities counted from the volume's smallest value. The survey keeps what D
needs of the spectrum, because that value is known only afterwards.
"""

from __future__ import annotations

import functools
import json
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped

from scanfield.baselines.codecs import CODECS, code
from scanfield.codec.bricks import Bricks, completed, merged, packed_header
from scanfield.codec.constant import decode_constant, encode_constant
from scanfield.codec.container import Container, pack, unpack
from scanfield.codec.field_file import field_of
from scanfield.data.scan import Scan
from scanfield.data.volumes import Volume, open_volume
from scanfield.data.write import write_atomically
from scanfield.errors import InputError, ScanfieldError
from scanfield.methods import api
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.tasks.compression import content_of, own_values, reach
from scanfield.tasks.model import Model

LEAST_BYTES = 512  # of a brick with a field; with less it becomes a constant
_SPARE = 16  # bytes by which headers of the same kind differ


@dataclass(frozen=True)
class Survey:
    """What is known of a brick before the fits.

    Args:
        low, high, total: smallest value, largest value, and sum of its voxels.
        peak, spread: largest and summed magnitude of its spectrum without the mean.
        checksum: CRC-32 of its voxels; 0 for a brick of one value.
    """

    voxels: int
    low: float
    high: float
    total: float
    peak: float
    spread: float
    checksum: int

    def concentration(self, low: float) -> float:
        """D of the intensities counted from `low`."""
        mean = abs(self.total - low * self.voxels)
        whole = mean + self.spread
        return max(mean, self.peak) / whole if whole > 0 else 1.0


@dataclass(frozen=True)
class Score:
    """What became of a brick.

    Args:
        size, checksum: of its bytes.
        squares, largest: sum of the squared errors, and the largest error, of the decoded brick.
        encode_s, decode_s: seconds.
        rivals: the same for standard codecs of at most the same bytes, by name; without those that cannot.
    """

    size: int
    checksum: int
    squares: float
    largest: float
    encode_s: float
    decode_s: float
    rivals: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that determines the bytes of all bricks.

    Args:
        source, expanded: the volume's file, and where it was expanded to, if it had to be.
        edge: largest number of voxels of a brick along an axis.
        psnr_db: what every brick must reach (peak: the volume's range), in place of a budget.
        model: file of the trained model that the method needs.
        shared: what the bricks' headers leave out.
        facts: type and range of the volume, and the bound on the error.
        work: the folder of finished bricks.
    """

    source: str
    expanded: str | None
    edge: int
    method: str
    config: Any
    seed: int
    device: str
    backend: str
    max_error: float | None
    work: str
    baselines: bool = False
    psnr_db: float | None = None
    model: str | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def open(self) -> tuple[Volume, Bricks]:
        """The volume, and how it is cut."""
        volume = open_volume(self.source, expanded=None if self.expanded is None else Path(self.expanded))
        return volume, Bricks.of(volume.grid, volume.frames, self.edge)


def survey_brick(plan: Plan, number: int, run: Run) -> Survey:
    """Reads a brick and takes its measure.

    Raises:
        InputError: a voxel is NaN or infinite, or the brick cannot be read.
    """
    volume, bricks = plan.open()
    return survey_of(volume.read(bricks.frame(number), bricks.box(number)), where=f"{plan.source}: brick {number}")


def survey_of(values: np.ndarray, *, where: str = "") -> Survey:
    """The measure of the voxels of a brick."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError("voxels are NaN or infinite", where=where, fix="replace them, or crop the volume")
    low, high = float(values.min()), float(values.max())
    if low == high:  # most of many a volume is empty: nothing more needs to be known
        return Survey(values.size, low, high, low * values.size, 0.0, 0.0, 0)
    total, checksum = float(values.sum(dtype=np.float64)), zlib.crc32(np.ascontiguousarray(values).data)
    spectrum = np.abs(np.fft.rfftn(values.astype(np.float32)))
    twice = np.full(spectrum.shape[2], 2.0)  # half of a symmetric spectrum
    twice[0] = 1.0
    if values.shape[2] % 2 == 0:
        twice[-1] = 1.0
    spectrum[0, 0, 0] = 0.0
    return Survey(values.size, low, high, total, float(spectrum.max()), float((spectrum @ twice).sum()), checksum)


def share(surveys: Sequence[Survey], budget: int) -> list[int]:
    """Bytes of every brick, together at most `budget`; 0 for those that become constants.

    Bricks of one value, and those whose share is less than `LEAST_BYTES`, get nothing; the others get their share of
    all there is.
    """
    low = min(survey.low for survey in surveys)
    weight = np.array([0.0 if s.low == s.high else s.voxels / s.concentration(low) for s in surveys])
    while weight.any():
        part = budget * weight / weight.sum()
        small = (weight > 0) & (part < LEAST_BYTES)
        if not small.any():
            return [int(size) for size in part]
        weight[np.argmin(np.where(small, weight, np.inf))] = 0.0
    return [0] * len(surveys)


@on_the_run_s_backend
def fit_brick(plan: Plan, number: int, budget: int, survey: Survey, run: Run) -> Score | None:
    """Fits, codes, decodes and judges a brick, and leaves its bytes in the work folder.

    Args:
        budget: its bytes without residual, where the plan has no PSNR; 0 makes it a constant.
        run: whose observers watch, and whose `stop` is heeded.

    Returns:
        None if it was stopped: then nothing is left.

    Raises:
        InputError: the volume is not the one that was surveyed; the PSNR is out of reach; what the method complains
            about.
    """
    volume, bricks = plan.open()
    values = volume.read(bricks.frame(number), bricks.box(number))
    if zlib.crc32(np.ascontiguousarray(values).data) != survey.checksum:
        raise InputError(
            "the volume changed while it was compressed", where=plan.source, fix="start again with --force"
        )
    grid, start = bricks.part(number), time.perf_counter()
    scan = Scan(torch.from_numpy(values.astype(np.float32)), grid, volume.unit, source=plan.source)
    seconds: list[float] = []

    def attempt(size: int) -> tuple[tuple[bytes, np.ndarray] | None, int, float]:
        packed = _packed(plan, scan, values, size, run)
        if packed is None:
            return None, 0, 0.0
        middle = time.perf_counter()
        content = completed(unpack(packed), plan.shared, grid, volume.unit)
        decoded = values_of(content, grid, plan.shared["facts"], model=model_of(plan.model))
        seconds.append(time.perf_counter() - middle)
        return (packed, decoded), len(packed), _psnr_db(plan, decoded, values)

    if plan.psnr_db is None:
        found = attempt(budget)[0]
    else:
        as_constant, _, psnr_db = attempt(0)
        enough = psnr_db >= plan.psnr_db
        found = as_constant if enough else reach(attempt, plan.psnr_db, values.nbytes, run)
    if found is None:
        return None
    packed, decoded = found
    error = decoded.astype(np.float64) - values
    largest = float(np.abs(error).max())
    if plan.max_error is not None and largest > plan.max_error:
        raise ScanfieldError(f"brick {number} errs by {largest}, more than {plan.max_error}: please report this")
    score = Score(
        size=len(packed),
        checksum=zlib.crc32(packed),
        squares=float(np.square(error).sum()),
        largest=largest,
        encode_s=time.perf_counter() - start - seconds[-1],
        decode_s=seconds[-1],
        rivals=_rivals(values, len(packed)) if plan.baselines and plan.max_error is None else {},
    )
    _keep(plan, number, packed, score)
    return score


def _packed(plan: Plan, scan: Scan, values: np.ndarray, budget: int, run: Run) -> bytes | None:
    """A brick's bytes; None if the run was stopped."""
    if budget == 0:
        return pack(*encode_constant(values, step=plan.shared["facts"].get("step")))
    model = model_of(plan.model)
    settings = replace(plan.config, budget_bytes=budget + _saved(plan, scan.grid, scan.unit))
    result = api.load(plan.method).fit(settings, scan, run, prior=model)
    if run.stop.is_set():
        return None
    content = content_of(result, values, plan.facts, plan.max_error, model)
    return pack(packed_header(content.header, plan.shared), content.sections)


def _psnr_db(plan: Plan, decoded: np.ndarray, values: np.ndarray) -> float:
    """Of a brick, with the volume's range as peak."""
    mean = float(np.square(decoded.astype(np.float64) - values).mean())
    span = float(plan.facts["high"] - plan.facts["low"])
    return 10 * math.log10(span**2 / mean) if mean > 0 else math.inf


@functools.lru_cache(maxsize=1)
def model_of(path: str | None) -> Model | None:
    """The trained model in a file, read once a process."""
    return None if path is None else Model.load(path)


def constant_brick(plan: Plan, survey: Survey) -> tuple[bytes, Score]:
    """The bytes of a brick of one value, which costs every codec the same; nothing is left in the work folder."""
    packed = pack({"constant": survey.low if plan.facts["type"] == "float32" else int(survey.low)}, [])
    free = {"size": float(len(packed)), "squares": 0.0, "largest": 0.0, "encode_s": 0.0, "decode_s": 0.0}
    rivals = dict.fromkeys(CODECS, free) if plan.baselines and plan.max_error is None else {}
    return packed, Score(len(packed), zlib.crc32(packed), 0.0, 0.0, 0.0, 0.0, rivals)


def values_of(
    content: Container,
    grid: Grid,
    facts: Mapping[str, Any],
    device: torch.device | str = "cpu",
    *,
    where: str = "",
    model: Model | None = None,
) -> Shaped[np.ndarray, "n0 n1 n2"]:
    """The voxels of a brick, in the volume's type.

    Args:
        content: the brick, with its whole header.
        grid: of the brick.
        facts: type and range of the volume, and the step of its residuals.
        model: the one the volume was compressed with, if it was.

    Raises:
        InputError: the brick is damaged, or needs another model.
    """
    if "constant" in content.header:
        return decode_constant(content, grid.shape, facts, where=where)
    return own_values(field_of(content, device, where=where, model=model), content, where=where)


def finished(plan: Plan, number: int) -> Score | None:
    """The score of a brick that the work folder holds complete; None if it must be fitted."""
    path = brick_path(plan, number)
    try:
        score = Score(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        content = path.read_bytes()
    except (OSError, ValueError, TypeError):
        return None
    return score if len(content) == score.size and zlib.crc32(content) == score.checksum else None


def brick_path(plan: Plan, number: int) -> Path:
    """Where a brick's bytes are until the file is written."""
    return Path(plan.work) / f"{number}.brick"


def _keep(plan: Plan, number: int, packed: bytes, score: Score) -> None:
    path = brick_path(plan, number)
    with write_atomically(path) as temporary:
        temporary.write_bytes(packed)
    with write_atomically(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(asdict(score)), encoding="utf-8")


def _saved(plan: Plan, grid: Grid, unit: str) -> int:
    """Bytes that a brick's header lacks of the header that the method reckons with."""
    spec = {"domain": "per-axis", "grid": grid.to_json(), "unit": unit, "scale": 1.0, "facts": {}}
    whole = merged(plan.shared, {"spec": spec, "config": {"budget_bytes": 65536}})
    return len(pack(whole, [])) - len(pack(packed_header(whole, plan.shared), [])) - _SPARE


def _rivals(values: np.ndarray, most: int) -> dict[str, dict[str, float]]:
    """Standard codecs on the same brick with at most the same bytes."""
    found = {}
    for name in CODECS:
        try:
            coded = code(name, values, most)
        except InputError:  # so small, or not installed
            continue
        error = coded.values - values
        found[name] = {
            "size": coded.size,
            "squares": float(np.square(error).sum()),
            "largest": float(np.abs(error).max()),
            "encode_s": coded.encode_s,
            "decode_s": coded.decode_s,
        }
    return found
