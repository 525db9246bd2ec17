"""NeSVoR on simulated and real stacks of thick slices, beside the mean of the stacks and classical super-resolution.

Simulated: an adult brain (T1, averaged to 2 mm) and a fetal atlas (T2, 0.8 mm), each scanned in three orthogonal stacks
whose slices are four times as thick as the atlas' voxels or three times as the brain's, by a simulator with another
point spread than any row fits with (box and sinc, on a finer lattice), 1 % Rician noise, smooth motion of 4 degrees and
1.5 pixels (standard deviation along each axis), and 10 % spoilt slices. Volumes are compared inside the body after the
rigid motion that no data determine (that of the poses) and one linear fit of intensities; poses likewise, over the
sound slices that show a tenth of what the largest shows. The rows that leave out the point spread are compared on the
brain at rest.

Real: six stacks of a fetus (1.125 x 1.125 x 3.3 mm) with masks; one stack is left out, its slices are registered to
each row's volume and compared with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.baselines.stacks import BASELINES
from scanfield.bench.protocol import BenchResult, Check, data_path
from scanfield.bench.timing import medians
from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.data.slices import SliceSet, slice_set
from scanfield.data.stack_masks import with_stack_mask
from scanfield.data.stacks import Stack, read_stack
from scanfield.fields.image import ImageField
from scanfield.fitting.groups import make_step
from scanfield.kernels.backend import using
from scanfield.methods.reconstruction import nesvor
from scanfield.metrics.poses import pose_errors
from scanfield.metrics.stacks import detection_auc
from scanfield.operators.resample import resample
from scanfield.operators.simulate_stacks import StackScanOptions, body_mask, simulate_stacks
from scanfield.operators.slices import SliceState, box_grid
from scanfield.run import Run
from scanfield.space.samples import random_index
from scanfield.tasks.stack_registration import register_stacks
from scanfield.tasks.stacks import judged

BRAIN, BRAIN_MM = "brain_t1_1mm/malf_1009_t1.nii.gz", 2.0
ATLAS = "fetal_atlas/STA32.nii.gz"
FETUS, FETAL_STACKS, LEFT_OUT = "fetal/mial_run-{}_{}.nii.gz", (1, 2, 3, 4, 5, 6), 5
MOTION_DEG, MOTION_PIXELS, OUTLIERS, NOISE_PERCENT = 4.0, 1.5, 0.1, 1.0
LEAST_SHARE = 0.1  # of the largest slice's pixels: smaller slices do not count in pose errors
PUBLISHED_STEP_S = 1.0  # of the published program on two cores, at the pixels and points below
STEP_PIXELS, STEP_POINTS = 1024, 64


@dataclass(frozen=True, eq=False)
class Case:
    """Simulated stacks with their truth; `voxel_mm` of all volumes."""

    name: str
    volume: Scan
    slices: SliceSet
    poses: Float[Tensor, "n 4 4"]
    outliers: Bool[Tensor, " n"]
    voxel_mm: float


def run(run: Run) -> BenchResult:
    """All rows of all cases, then the cost of a step."""
    result = BenchResult()
    with using(run.backend):
        cases = [brain(run.seed), atlas(run.seed)]
        for case in cases:
            _moving(case, run, result)
        _still(brain(run.seed, still=True), run, result)
        _fetus(run, result)
        _speed(cases[0], run, result)
    result.notes += [
        "PSNR inside the body, data range max - min of the truth, after pose gauge and linear intensity fit.",
        f"A step of the published program with {STEP_PIXELS} pixels of {STEP_POINTS} points took about "
        f"{PUBLISHED_STEP_S:g} s on two cores, measured beforehand on the fetal stacks.",
        "Motion is smooth in time; slices are acquired in two interleaved passes.",
    ]
    return result


# The data -------------------------------------------------------------------------------------------------------------


def brain(seed: int, still: bool = False) -> Case:
    """An adult brain at 2 mm, in slices of 6 mm."""
    full = read_nifti(data_path(BRAIN))
    grid = full.grid.resampled(BRAIN_MM)
    volume = Scan(resample(full.values.float(), full.grid, grid), grid)
    return simulated("brain", volume, StackScanOptions(thickness_mm=6.0, in_plane_mm=BRAIN_MM, seed=seed), still)


def atlas(seed: int) -> Case:
    """A fetal brain at 0.8 mm, in slices of 3.2 mm with pixels of 1 mm."""
    options = StackScanOptions(thickness_mm=3.2, in_plane_mm=1.0, seed=seed)
    return simulated("atlas", read_nifti(data_path(ATLAS)), options, False)


def simulated(name: str, volume: Scan, options: StackScanOptions, still: bool) -> Case:
    """Three orthogonal stacks of a volume, moving and partly spoilt, or at rest."""
    pixel = options.in_plane_mm
    assert pixel is not None
    options = replace(options, noise_percent=NOISE_PERCENT)
    if not still:
        options = replace(options, motion_deg=MOTION_DEG, motion_mm=MOTION_PIXELS * pixel, outliers=OUTLIERS)
    found = simulate_stacks(volume, options)
    slices = slice_set([part.stack for part in found])
    names = list(zip(slices.stack_index.tolist(), slices.number.tolist(), strict=True))
    poses = torch.stack([torch.from_numpy(found[stack].poses[number]) for stack, number in names])
    outliers = torch.tensor([number in found[stack].outliers for stack, number in names])
    return Case(name, volume, slices, poses, outliers, pixel)


def fetus() -> list[Stack]:
    """Six stacks with their masks."""
    return [
        with_stack_mask(read_stack(data_path(FETUS.format(k, "T2w"))), read_nifti(data_path(FETUS.format(k, "mask"))))
        for k in FETAL_STACKS
    ]


# The rows -------------------------------------------------------------------------------------------------------------


def _moving(case: Case, run: Run, result: BenchResult) -> None:
    """The ablations and the rivals on stacks with motion and outliers."""
    fast = nesvor.Config.fast()
    configs = {
        "fast": fast,
        "fast, poses fixed": replace(fast, optimise_poses=False),
        "fast, one variance": replace(fast, pixel_variance=False, slice_variance=False),
    }
    rows = {name: _fit(case, name, config, run, result) for name, config in configs.items()}
    rows |= _rivals(case, run, result)
    before = _pose_errors(case, case.slices.initial)
    own = rows["fast"]

    def check(what: str, value: float, threshold: float, unit: str = "dB") -> None:
        result.checks.append(Check(f"{case.name}: {what}", value, threshold, unit=unit))

    check("poses fitted against fixed", own["psnr_db"] - rows["fast, poses fixed"]["psnr_db"], 2.0)
    check("variances against one for all", own["psnr_db"] - rows["fast, one variance"]["psnr_db"], 0.0)
    check("against the mean of the stacks", own["psnr_db"] - rows["mean of stacks"]["psnr_db"], 2.5)
    check("against the classical rival", own["psnr_db"] - rows["classical"]["psnr_db"], 0.0)
    for key, error in before.items():
        check(f"fall of {key}", 100 * (1 - own[key] / error), 60.0, "%")
    check("spoilt slices told by weight and scale (AUC)", own["outlier_auc"], 0.9, "")


def _still(case: Case, run: Run, result: BenchResult) -> None:
    """The point spread on and off, at rest."""
    fast = replace(nesvor.Config.fast(), optimise_poses=False)
    on = _fit(case, "fast, at rest", fast, run, result)["psnr_db"]
    off = _fit(case, "fast, at rest, no point spread", replace(fast, psf="point"), run, result)["psnr_db"]
    result.checks.append(Check(f"{case.name}: point spread against none, at rest", on - off, 2.0, unit="dB"))


def _fit(case: Case, name: str, config: nesvor.Config, run: Run, result: BenchResult) -> dict[str, Any]:
    run.tell({"case": f"{case.name}: {name}"})
    start = time.perf_counter()
    fitted = nesvor.fit(config, case.slices, run.again(quiet=True))
    grid = box_grid(case.slices.world(), case.voxel_mm, 5.0)
    image = nesvor.render(fitted, grid)
    seconds = time.perf_counter() - start
    return _row(case, name, ImageField(image, grid), nesvor.slices(fitted), seconds, result)


def _rivals(case: Case, run: Run, result: BenchResult) -> dict[str, dict[str, Any]]:
    rows = {}
    grid = box_grid(case.slices.world(), case.voxel_mm, 5.0)
    for baseline in BASELINES.values():
        run.tell({"case": f"{case.name}: {baseline.label}"})
        start = time.perf_counter()
        volume, state = baseline.reconstruct(case.slices, grid, run.again(quiet=True))
        seconds = time.perf_counter() - start
        rows[baseline.label] = _row(case, baseline.label, ImageField(volume, grid), state, seconds, result)
    return rows


def _row(
    case: Case, name: str, image: ImageField, state: SliceState, seconds: float, result: BenchResult
) -> dict[str, Any]:
    """Scores of a volume and its poses, added to the table."""
    judged_slices = _judged(case)
    errors = pose_errors(state.poses[judged_slices], case.poses[judged_slices])
    inside = (body_mask(case.volume) if case.volume.mask is None else case.volume.mask).flatten()
    x = case.volume.grid.points()[inside].double() @ errors.gauge[:3, :3].T + errors.gauge[:3, 3]
    seen, truth = image(x.float())[:, 0], case.volume.values.float().flatten()[inside]
    plane = torch.stack([seen, torch.ones_like(seen)], dim=1)
    error = (plane @ torch.linalg.lstsq(plane, truth[:, None]).solution)[:, 0] - truth
    psnr = 20 * torch.log10((truth.max() - truth.min()) / error.square().mean().sqrt())
    row: dict[str, Any] = {"case": case.name, "row": name, "psnr_db": round(float(psnr), 2)}
    row |= {key: round(value, 3) for key, value in errors.summary().items()}
    if bool(case.outliers.any()):
        row["outlier_auc"] = round(detection_auc(1 - state.soundness(), case.outliers), 3)
    row["seconds"] = round(seconds, 1)
    result.table.append(row)
    return row


def _judged(case: Case) -> Bool[Tensor, " n"]:
    """Sound slices that show enough for a pose."""
    pixels = torch.bincount(case.slices.slice_index, minlength=case.slices.count)
    return ~case.outliers & (pixels >= LEAST_SHARE * pixels.max())


def _pose_errors(case: Case, poses: Float[Tensor, "n 4 4"]) -> dict[str, float]:
    judged_slices = _judged(case)
    return pose_errors(poses[judged_slices], case.poses[judged_slices]).summary()


def _fetus(run: Run, result: BenchResult) -> None:
    """One stack is left out, and predicted."""
    stacks = fetus()
    slices = register_stacks(stacks, run.again(quiet=True)).applied(slice_set(stacks))
    unseen = slices.stack_index == LEFT_OUT
    fitted, left = slices.subset(~unseen), slices.subset(unseen)
    grid = box_grid(fitted.world(), 1.2, 5.0)
    rows: dict[str, dict[str, Any]] = {}

    def add(name: str, volume: Tensor, start: float) -> None:
        seconds = round(time.perf_counter() - start, 1)
        numbers = {key: round(value, 4) for key, value in judged(volume, grid, left, run.again(quiet=True)).items()}
        rows[name] = {"case": "fetus", "row": name, **numbers, "seconds": seconds}
        result.table.append(rows[name])

    start = time.perf_counter()
    own = nesvor.fit(nesvor.Config.fast(), fitted, run.again(quiet=True))
    add("fast", nesvor.render(own, grid) / own.spec.scale, start)
    for baseline in BASELINES.values():
        start = time.perf_counter()
        add(baseline.label, baseline.reconstruct(fitted, grid, run.again(quiet=True))[0], start)
    for rival in ("mean of stacks", "classical"):
        gain = rows["fast"]["held_out_ncc"] - rows[rival]["held_out_ncc"]
        result.checks.append(Check(f"fetus: NCC with the stack left out, against {rival}", gain, 0.0))
    result.checks.append(Check("fetus: seconds of fit and volume", rows["fast"]["seconds"], 300.0, "<=", "s"))


def _speed(case: Case, run: Run, result: BenchResult) -> None:
    """One step of the published model at the pixels and points that the published program was timed with."""
    config = nesvor.Config()
    fresh, data = run.again(quiet=True), case.slices.to(run.device)
    model = nesvor.build(config, nesvor.spec_of(config, data, fresh)).to(run.device)
    terms = nesvor.fit_terms(config, model, data)
    step, draws = make_step(nesvor.groups(config, model)), fresh.generator("timing")
    weight = nesvor.weights(config)

    def once() -> None:
        index = random_index(len(data.pixels), STEP_PIXELS, draws).to(run.device)
        found = terms(index, STEP_POINTS, draws)
        step(torch.stack([weight.get(name, 1.0) * term for name, term in found.items()]).sum(), 0, config.steps)

    seconds = medians({"step": once}, run.device)["step"]
    result.table.append({"case": "step", "row": f"{STEP_PIXELS} pixels of {STEP_POINTS} points", "seconds": seconds})
    result.checks.append(Check("a step against a fifth of the published", seconds, PUBLISHED_STEP_S / 5, "<=", "s"))
