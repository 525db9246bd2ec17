"""NIK on beating and resting hearts and on raw data of scanners, beside gridding, CG-SENSE and temporal TV.

One beat: a short-axis slice of a real heart, 64 x 64, whose middle beats once by 8 mm at most while one spoke after the
other is taken, on a grid twice as fine, with 8 coils and 1 % noise: 200 golden-angle spokes in 0.8 s, 30 phases. The
motion is simulated; there is no raw cine with a known truth. Rivals bin the spokes into the 30 phases. Settings were
chosen on a slice of another body part (the packaged head).

At rest: the same slice, 100 spokes, nothing moves. CG-SENSE knows the coils while it reconstructs, the field
does not.

Losses: the published high-dynamic-range loss, the same with the floor of our preset, and plain squares, the same in
everything else, for growing numbers of steps, each with a schedule of its own.

Real: an 8-channel Cartesian brain slice of which every row sees 60 of 180 lines, against the image of all lines; a
16-channel radial phantom of which every row sees 35 of 69 spokes and an 8-channel spiral one of which every row sees 30
of 60 interleaves, against CG-SENSE of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scanfield.baselines.mri import cg_sense
from scanfield.bench.parallel import each
from scanfield.bench.protocol import BenchResult, Check, data_path
from scanfield.bench.scanner_kspace import brain_lines, phantom_spirals, phantom_spokes
from scanfield.data.cardiac import cardiac_gated
from scanfield.data.rawmri import KSpace
from scanfield.data.scan import Scan
from scanfield.methods.reconstruction import nik
from scanfield.operators.calibration import sensitivities_on
from scanfield.operators.coils import root_sum_of_squares
from scanfield.operators.fourier import centred_ifft
from scanfield.operators.simulate_kspace import KSpaceScanOptions, simulate_kspace, true_series
from scanfield.operators.trajectories import random_lines
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.mri import reconstruct_kspace

SLICE, MATRIX, PIXEL_MM = 30, 64, 1.4  # of the 70 short-axis slices, whose pixel size is not known
BEAT_S, SPOKES, PHASES = 0.8, 200, 30
BUDGETS = (250, 1000, 3000, 10000)  # steps; at rest the third
LINES, EVERY = 60, 2  # of the real scans
FAST = nik.Config.fast()
LOSSES = {
    "published loss": replace(FAST, loss="hdr", epsilon=nik.Config().epsilon),
    "published loss, higher floor": replace(FAST, loss="hdr"),
    "plain squares": replace(FAST, loss="l2"),
}

Table = dict[tuple[str, str], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A fit of a scene; with a `name` without rivals."""

    scene: str
    config: nik.Config
    name: str = ""


def run(run: Run) -> BenchResult:
    """Two simulated and three real scans, and fits of the losses for growing numbers of steps."""
    longest = {"one beat": BUDGETS[-1], "at rest": BUDGETS[-2]}
    jobs = [Job(scene, FAST) for scene in SCENES]
    for name, config in LOSSES.items():
        plans = [("one beat", steps) for steps in BUDGETS] + [("at rest", longest["at rest"])]
        jobs += [Job(scene, replace(config, steps=n), f"NIK, {name}, {n} steps") for scene, n in plans]
    run.tell({"case": f"{len(jobs)} fits"})
    found: Table = {}
    for rows in each(scored, jobs, run):
        found |= {(row["scene"], row["row"]): row for row in rows}

    def over(scene: str, rival: str, key: str = "psnr_db") -> float:
        return float(found[scene, "NIK"][key] - found[scene, rival][key])

    def losses(scene: str, name: str) -> float:
        a, b = (found[scene, f"NIK, {n}, {longest[scene]} steps"]["psnr_db"] for n in (name, "plain squares"))
        return float(a - b)

    moves = "psnr_moving_db"
    return BenchResult(
        list(found.values()),
        [
            Check("one beat: NIK over binned gridding", over("one beat", "gridding"), 1.0, unit="dB"),
            Check("one beat: NIK over binned CG-SENSE", over("one beat", "CG-SENSE"), 0.0, unit="dB"),
            Check("where it moves: NIK over binned gridding", over("one beat", "gridding", moves), 0.0, unit="dB"),
            Check("where it moves: NIK over binned CG-SENSE", over("one beat", "CG-SENSE", moves), 0.0, unit="dB"),
            Check("at rest: NIK over gridding", over("at rest", "gridding"), 1.0, unit="dB"),
            *(
                Check(f"{scene}: {name} over plain squares", losses(scene, name), 0.0, unit="dB")
                for scene in longest
                for name in LOSSES
                if name != "plain squares"
            ),
            Check("phantom of a scanner: NIK over gridding", over("phantom", "gridding"), 0.0, unit="dB"),
            Check("spiral phantom: NIK over gridding", over("spiral phantom", "gridding"), 0.0, unit="dB"),
        ],
        [
            "Fits ran side by side; seconds are of a busy machine.",
            "PSNR of the magnitudes of all frames together, the reference's largest value as range.",
            f"One beat: NIK against temporal TV {over('one beat', 'temporal TV'):+.1f} dB, which needs bins, coil maps "
            "and a weight.",
            f"NIK against CG-SENSE at rest {over('at rest', 'CG-SENSE'):+.1f} dB, on the brain "
            f"{over('brain', 'CG-SENSE'):+.1f} dB: the field does not know that all coils see one image, so nothing "
            "unfolds.",
            "The motion of the heart is simulated on a real slice; the raw data of scanners do not move.",
            "The slice's pixel size is not known; 1.4 mm is assumed.",
            f"NIK's own setting is the fast preset: the published loss with a floor of {FAST.epsilon:g} in place of "
            f"{nik.Config().epsilon:g}. The losses differ in nothing else.",
        ],
    )


def heart() -> Scan:
    """One short-axis slice."""
    with np.load(data_path("body_mr/chest_mr_slices.npz")) as file:
        values = torch.from_numpy(file["img"][SLICE].astype(np.float32)).T[:, :, None].contiguous()
    return Scan(values, Grid.centred((*values.shape[:2], 1), (PIXEL_MM, PIXEL_MM, 8.0)), source="chest_mr_slices")


def beating() -> tuple[KSpace, Tensor]:
    """The gated scan of one beat, and the truth at the middles of its phases."""
    image, options = heart(), _options("beating")
    grid = _grid(image)
    made = simulate_kspace(image, options, grid=grid)
    times = (np.arange(PHASES) + 0.5) / PHASES * BEAT_S
    return cardiac_gated(made.kspace, PHASES), true_series(image, options, times, grid=grid)


def resting() -> tuple[KSpace, Tensor]:
    """Half as many spokes of the same slice, and the one true image."""
    image = heart()
    made = simulate_kspace(image, replace(_options("none"), views_per_frame=SPOKES // 2), grid=_grid(image))
    return made.kspace, made.truth


def brain() -> tuple[KSpace, Tensor]:
    """A third of the lines, and the image of all of them."""
    every = brain_lines()
    truth = root_sum_of_squares(centred_ifft(every.values.permute(1, 2, 0)[..., None]))
    part = every.subset(random_lines(every.acquisition.views, LINES, np.random.default_rng(0)))
    assert isinstance(part, KSpace)
    return part, truth[None]


def phantom() -> tuple[KSpace, Tensor]:
    """Every second spoke, and CG-SENSE of all of them."""
    return _undersampled(phantom_spokes())


def spiral() -> tuple[KSpace, Tensor]:
    """Every second interleaf, and CG-SENSE of all of them."""
    return _undersampled(phantom_spirals())


def _undersampled(every: KSpace) -> tuple[KSpace, Tensor]:
    """A part of the views, and CG-SENSE of all of them."""
    geometry = every.acquisition
    every = replace(every, sensitivities=sensitivities_on(every, geometry.volume))
    part = every.subset(np.arange(0, geometry.views, EVERY))
    assert isinstance(part, KSpace)
    return replace(part, sensitivities=None), cg_sense(every, geometry.volume, iterations=10).abs()


def _options(motion: Any) -> KSpaceScanOptions:
    return KSpaceScanOptions(
        frames=1,
        views_per_frame=SPOKES,
        motion=motion,
        motion_mm=8.0,
        period_s=BEAT_S,
        repetition_s=BEAT_S / SPOKES,
        noise_percent=1.0,
    )


def _grid(image: Scan) -> Grid:
    edge = image.grid.shape[0] * image.grid.spacing_mm[0] / MATRIX
    return image.grid.resampled((edge, edge, image.grid.spacing_mm[2]))


def scored(job: Job, run: Run) -> list[dict[str, Any]]:
    """Fits, and scores every row."""
    data, truth = SCENES[job.scene]()
    rivals: Literal["none", "all"] = "none" if job.name else "all"
    outcome = reconstruct_kspace(data, "nik", job.config, run, reference=truth, baselines=rivals)
    return [
        {
            "scene": job.scene,
            "row": job.name or row.label,
            "steps": job.config.steps if row.kind == "method" else None,
            "psnr_db": row.values["psnr_db:reference"],
            "psnr_moving_db": row.values.get("psnr_moving_db"),
            "ssim": row.values["ssim:reference"],
            "held_out_percent": row.values.get("held_out"),
            "held_out_field_percent": row.values.get("held_out_field"),
            "seconds": row.values["seconds"],
        }
        for row in outcome.table.rows
    ]


SCENES: dict[str, Callable[[], tuple[KSpace, Tensor]]] = {
    "one beat": beating,
    "at rest": resting,
    "brain": brain,
    "phantom": phantom,
    "spiral phantom": spiral,
}
