"""ST-INR on moving slices of a chest and a head at 6 and 8 spokes a frame, and on scanners' raw data, beside rivals.

Slices of magnitude images (body_mr/chest_mr_slices.npz, brain_slice_admm.npz; no default was tuned on these) are made
to beat and to brighten, seen by eight coils with a smooth phase and noise, and scanned along golden-angle spokes,
each at its own time, on a grid twice as fine as the reconstruction's: dynamics are simulated, anatomy is not. 5 % of
the spokes, or all spokes of three inner frames, are kept from every row. Raw data of scanners (kspace/) show nothing
that moves; they are undersampled in retrospect and judged against the image of all of their data.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scanfield.baselines.mri import cg_sense
from scanfield.bench.parallel import each
from scanfield.bench.protocol import BenchResult, Check, data_path
from scanfield.bench.scanner_kspace import brain_lines, phantom_spirals, phantom_spokes
from scanfield.data.rawmri import KSpace
from scanfield.data.scan import Scan
from scanfield.methods.reconstruction.st_inr_dmri import Config
from scanfield.operators.calibration import sensitivities_on
from scanfield.operators.simulate_kspace import KSpaceScanOptions, SimulatedKSpace, simulate_kspace
from scanfield.operators.trajectories import random_lines
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.mri import held_out_views, reconstruct_kspace
from scanfield.tasks.outcome import Outcome

PIXELS, FRAMES, COILS, NOISE_PERCENT = 96, 20, 8, 1.0
HELD_OUT_FRAMES = 3
ABLATIONS: dict[str, dict[str, Any]] = {
    "without temporal variation": {"temporal_weight": 0.0},
    "the other data term": {},  # relative where the preset has plain squares, and the other way round
    "all levels at once": {"coarse_to_fine": False},
    "without low rank": {"low_rank_weight": 0.0},
}


EIGHT, SIX = "chest, 8 spokes a frame", "head, 6 spokes a frame"
MOVING = {EIGHT: ("body_mr/chest_mr_slices.npz", 45, 1.4, 8), SIX: ("body_mr/brain_slice_admm.npz", 1, 0.9, 6)}
FRAMES_KEPT = f"{EIGHT}, {HELD_OUT_FRAMES} frames held out"
STILL = {  # scans, and the views that are kept
    "head, Cartesian": (brain_lines, random_lines(180, 60, np.random.default_rng(0))),
    "phantom, radial": (phantom_spokes, np.arange(0, 69, 3)),
    "phantom, spiral": (phantom_spirals, np.arange(0, 60, 3)),
}


def run(run: Run) -> BenchResult:
    """The card's contrasts on two moving slices, frames held out, ablations, then raw data of scanners."""
    titles = [*MOVING, FRAMES_KEPT, *ABLATIONS, *STILL]
    run.tell({"case": f"{len(titles)} cases"})
    result = BenchResult()
    parts = dict(zip(titles, each(part_as_json, titles, run), strict=True))
    for found in parts.values():
        result.table += found["table"]
        result.checks += [Check(**check) for check in found["checks"]]
    psnr = {name: parts[name]["table"][0]["psnr_db"] for name in (EIGHT, *ABLATIONS)}
    _ablation_checks(psnr[EIGHT], {name: psnr[name] for name in ABLATIONS}, result)
    result.notes += [
        "PSNR of magnitudes, all frames together, data range the reference's largest value",
        "moving: simulated beating and brightening of real slices; still: raw data of scanners, PSNR against the "
        "CG-SENSE image of all of their data",
        "cases ran side by side; seconds are of a busy machine",
    ]
    return result


def part_as_json(title: str, run: Run) -> dict[str, Any]:
    """See `part`."""
    return asdict(part(title, run))


def part(title: str, run: Run) -> BenchResult:
    """Rows and checks of one case."""
    result = BenchResult()
    if title in STILL:
        _still(title, *_raw(title), run, result)
    elif title in MOVING:
        _moving(title, _made(title, run), run, result)
    elif title in ABLATIONS:
        psnr = _config_psnr(_made(EIGHT, run), _ablated(title), run)
        result.table.append({"scan": EIGHT, "image": f"ST-INR, {title}", "psnr_db": round(psnr, 2)})
    else:
        _held_out_frames(title, _made(EIGHT, run), run, result)
    return result


def _made(title: str, run: Run) -> SimulatedKSpace:
    file, index, spacing_mm, spokes = MOVING[title]
    return _simulated(_slice(file, index, spacing_mm), spokes, run)


def _moving(title: str, made: SimulatedKSpace, run: Run, result: BenchResult) -> None:
    """All rows of a moving slice."""
    outcome = _reconstruct(made.kspace, made.truth, Config.fast(), run)
    psnr = _rows(title, outcome, result)
    result.checks += [
        Check(f"{title}: over CG-SENSE frame by frame", psnr["st_inr_dmri"] - psnr["cg-sense"], 3.0, unit="dB"),
        Check(f"{title}: over temporal TV", psnr["st_inr_dmri"] - psnr["temporal-tv"], 0.0, unit="dB"),
    ]


def _held_out_frames(title: str, made: SimulatedKSpace, run: Run, result: BenchResult) -> None:
    """All rows in the frames of which no spoke was fitted; frame-wise rivals are interpolated there."""
    geometry = made.kspace.acquisition
    frames = np.unique(geometry.frame_of_view[held_out_views(geometry, None, HELD_OUT_FRAMES)])
    outcome = _reconstruct(made.kspace, made.truth, Config.fast(), run, holdout_frames=HELD_OUT_FRAMES)
    truth = made.truth.abs()
    psnr = {}
    for row, picture in zip(outcome.table.rows, outcome.pictures, strict=False):  # the reference comes last
        shown = picture.values.movedim(-1, 0)
        psnr[row.name] = _psnr(shown[frames], truth[frames], float(truth.max()))
        values = {"scan": title, "image": row.label, "psnr_db_held_out_frames": round(psnr[row.name], 2)}
        result.table.append(values | {"held_out_percent": round(row.values["held_out"], 2)})
    for rival in ("cg-sense", "temporal-tv"):
        label = {"cg-sense": "CG-SENSE", "temporal-tv": "temporal TV"}[rival]
        gain = psnr["st_inr_dmri"] - psnr[rival]
        result.checks.append(Check(f"{title}: over {label} there", gain, 0.0, unit="dB"))


def _ablated(name: str) -> Config:
    other = "relative" if Config.fast().loss == "l2" else "l2"
    return replace(Config.fast(), **(ABLATIONS[name] or {"loss": other}))


def _ablation_checks(whole: float, without: dict[str, float], result: BenchResult) -> None:
    """What the series loses without each part: PSNR with all of them, and without each."""
    losses = {name: whole - psnr for name, psnr in without.items()}
    relative = losses["the other data term"] * (1 if Config.fast().loss == "relative" else -1)
    result.checks += [
        Check(f"{EIGHT}: gain by temporal variation", losses["without temporal variation"], 1.0, unit="dB"),
        Check(f"{EIGHT}: gain by the relative data term (paper)", relative, 0.0, unit="dB"),
        Check(f"{EIGHT}: gain by coarse to fine (paper)", losses["all levels at once"], 0.0, unit="dB"),
    ]


def _still(name: str, full: KSpace, few: np.ndarray, run: Run, result: BenchResult) -> None:
    volume = full.acquisition.volume
    title = f"{name}, {len(few)} of {full.acquisition.views} views"
    reference = cg_sense(replace(full, values=full.values.to(run.device)), volume).abs().cpu()
    part = full.subset(few)
    assert isinstance(part, KSpace)
    outcome = _reconstruct(part, reference, Config.fast(), run)
    psnr = _rows(title, outcome, result)
    result.checks += [
        Check(f"{title}: over gridding", psnr["st_inr_dmri"] - psnr["gridding"], 0.0, unit="dB"),
        Check(f"{title}: over CG-SENSE", psnr["st_inr_dmri"] - psnr["cg-sense"], 0.0, unit="dB"),
    ]


def _reconstruct(
    data: KSpace, reference: Tensor, config: Config, run: Run, *, holdout_frames: int | None = None
) -> Outcome:
    return reconstruct_kspace(
        data, "st_inr_dmri", config, run.again(quiet=True), reference=reference, holdout_frames=holdout_frames
    )


def _config_psnr(made: SimulatedKSpace, config: Config, run: Run) -> float:
    quiet = run.again(quiet=True)
    outcome = reconstruct_kspace(made.kspace, "st_inr_dmri", config, quiet, baselines="none", reference=made.truth)
    return outcome.table.rows[0].values["psnr_db:reference"]


def _rows(title: str, outcome: Outcome, result: BenchResult) -> dict[str, float]:
    """Adds the table's rows; their PSNR by name."""
    for row in outcome.table.rows:
        values: dict[str, Any] = {"scan": title, "image": row.label}
        for key, column, digits in (
            ("psnr_db", "psnr_db:reference", 2),
            ("psnr_db_moving", "psnr_moving_db", 2),
            ("ssim", "ssim:reference", 4),
            ("held_out_percent", "held_out", 2),
            ("seconds", "seconds", 1),
        ):
            if column in row.values:
                values[key] = round(row.values[column], digits)
        result.table.append(values)
    return {row.name: row.values["psnr_db:reference"] for row in outcome.table.rows}


def _simulated(image: Scan, spokes: int, run: Run) -> SimulatedKSpace:
    extent = [n * s for n, s in zip(image.grid.shape[:2], image.grid.spacing_mm[:2], strict=True)]
    grid = image.grid.resampled((extent[0] / PIXELS, extent[1] / PIXELS, image.grid.spacing_mm[2]))
    options = KSpaceScanOptions(
        coils=COILS,
        frames=FRAMES,
        views_per_frame=spokes,
        motion="both",
        motion_mm=0.015 * extent[0],
        repetition_s=0.08 / spokes,
        noise_percent=NOISE_PERCENT,
        seed=run.seed,
    )
    return simulate_kspace(image, options, grid=grid)


def _slice(file: str, index: int, spacing_mm: float) -> Scan:
    """A stored slice; its pixel size is not known, a usual one is assumed."""
    with np.load(data_path(file), allow_pickle=False) as held:
        image = np.asarray(held["img"][index], dtype=np.float32)
    grid = Grid.centred((image.shape[1], image.shape[0], 1), (spacing_mm, spacing_mm, 8.0))
    return Scan(torch.tensor(image.T[:, :, None].copy()), grid, "arbitrary", source=file)


def _raw(title: str) -> tuple[KSpace, np.ndarray]:
    """All data of a scanner with sensitivities, and the views that are kept."""
    read, views = STILL[title]
    return _with_maps(read()), views


def _with_maps(data: KSpace) -> KSpace:
    return replace(data, sensitivities=sensitivities_on(data, data.acquisition.volume))


def _psnr(image: Tensor, truth: Tensor, peak: float) -> float:
    return float(20 * torch.log10(peak / (image - truth).square().mean().sqrt()))
