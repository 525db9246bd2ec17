"""NIR between brains of different people: windows against global correlation, with and without a bias field; flows.

Two pairs of people (T1, whole brain, averaged to voxels of 2 mm; tissue labels of 1 mm judge), brought together by an
affine map first, and one pair of slabs of 18 slices that are aligned beforehand. The defaults were chosen on another
pair of people. The bias field multiplies the fixed image by exp(b), b a random polynomial of second degree in the
image's box, between -0.7 and 0.7 (a factor of four between the darkest and the brightest place).

Dice is the mean over the labels (CSF, grey and white matter) of the moving labels, resampled once, on the fixed labels'
grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scanfield.baselines.registration import BASELINES
from scanfield.bench.labelled_people import halved
from scanfield.bench.protocol import BenchResult, Check, data_path
from scanfield.bench.registration_rivals import RIVALS
from scanfield.data.nifti import read_nifti
from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields import calculus
from scanfield.fields.motion import Composition
from scanfield.fitting.align import align, centred_pose
from scanfield.methods.registration import nir
from scanfield.metrics.registration import dice, inverse_consistency, regularity, warped_labels
from scanfield.run import Run
from scanfield.space.lattice import MaskedVoxels
from scanfield.space.pose import Pose

BRAINS = (("1007", "1113"), ("1012", "1122"))  # fixed, moving; settings were chosen on 1009 and 1128
SLABS = ("01", "20")
BIAS = 0.7
PROBES = 50_000
CLEARLY = 0.02  # of Dice


@dataclass(frozen=True, eq=False)
class Case:
    """Two people, their labels (fixed, moving), and whether an affine stage is needed."""

    name: str
    pair: Pair
    labels: tuple[Scan, Scan]
    affine: bool


def run(run: Run) -> BenchResult:
    """Every row on every pair; rivals and the flow on the first one."""
    result = BenchResult()
    cases = [brains(*names) for names in BRAINS] + [slabs(*SLABS)]
    for number, case in enumerate(cases):
        _register(case, run, result, whole=number == 0)
    result.notes += [
        "The rivals start from the same affine map; ANTs runs its own affine stage first.",
        "Folding is the share of voxel centres of the brain with det <= 0.",
        "The paper's numbers and settings are not known to us: these are the orderings it claims.",
    ]
    return result


# The data -------------------------------------------------------------------------------------------------------------


def brains(fixed: str, moving: str) -> Case:
    """Whole brains at 2 mm with labels at 1 mm."""
    scans, labels = [], []
    for name in (fixed, moving):
        scan = read_nifti(data_path(f"brain_t1_1mm/malf_{name}_t1.nii.gz"))
        scans.append(halved(scan))
        labels.append(read_nifti(data_path(f"brain_t1_1mm/malf_{name}_tissues.nii.gz")))
    scans[0] = replace(scans[0], mask=scans[0].values > 0)
    return Case(f"{fixed} and {moving}", Pair(*scans), (labels[0], labels[1]), affine=True)


def slabs(fixed: str, moving: str) -> Case:
    """Slabs of 18 slices, aligned beforehand."""
    scans = [read_nifti(data_path(f"brain_population/jlf_{name}_t1.nii.gz")) for name in (fixed, moving)]
    labels = [read_nifti(data_path(f"brain_population/jlf_{name}_seg.nii.gz")) for name in (fixed, moving)]
    scans[0] = replace(scans[0], mask=scans[0].values > 0)
    return Case(f"slabs {fixed} and {moving}", Pair(*scans), (labels[0], labels[1]), affine=False)


def biased(scan: Scan, seed: int) -> Scan:
    """The image times exp(b): see the module."""
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-1, 1, n) for n in scan.grid.shape]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    terms = torch.cat([x, x**2, x * x.roll(1, dims=-1)], dim=-1)
    b = terms @ torch.randn(terms.shape[-1], generator=generator)
    b = 2 * (b - b.min()) / (b.max() - b.min()) - 1
    return replace(scan, values=scan.values.float() * (BIAS * b).exp())


# The rows -------------------------------------------------------------------------------------------------------------


def methods(*, whole: bool) -> dict[str, nir.Config]:
    """The settings that are compared, by the name of their row."""
    fast = nir.Config.fast()
    rows = {
        "NIR": fast,
        "NIR, isolated points, global NCC": replace(fast, sampling="points", similarity="ncc"),
        "NIR, velocity": replace(fast, mode="velocity"),
    }
    if whole:
        rows["NIR, hybrid, global NCC"] = replace(fast, similarity="ncc")
        rows["NIR, patches alone"] = replace(fast, sampling="patches")
        rows["NIR, strided lattice alone"] = replace(fast, sampling="lattice")
    return rows


def _register(case: Case, run: Run, result: BenchResult, *, whole: bool) -> None:
    rows: dict[str, dict[str, Any]] = {}

    def add(name: str, phi: nn.Module, seconds: float, psi: nn.Module | None = None) -> None:
        rows[name] = {"pair": case.name, "row": name, **_scores(case, phi, psi, run), "seconds": round(seconds, 1)}
        result.table.append(rows[name])

    add("no registration", nn.Identity(), 0.0)
    start = time.perf_counter()
    pose = _affine(case, run)
    if case.affine:
        add("affine", pose, time.perf_counter() - start)
    plain = case.pair
    marred = Pair(biased(plain.fixed, run.seed), plain.moving)
    for name, config in methods(whole=whole).items():
        for pair, suffix in ((plain, ""), (marred, ", bias field")):
            if suffix and name == "NIR, velocity":
                continue
            run.tell({"case": f"{case.name}: {name}{suffix}"})
            fitted = nir.fit(replace(config, pre_alignment="affine" if case.affine else "none"), pair, run.again())
            seconds = sum(log.seconds for log in fitted.logs)
            add(name + suffix, nir.transform(fitted), seconds, nir.inverse(fitted))
    if whole:
        for name, register in rivals(case, pose).items():
            run.tell({"case": f"{case.name}: {name}"})
            start = time.perf_counter()
            try:
                phi = register(run.again())
            except InputError as error:
                result.notes.append(f"{name} is missing from the table: {error}.")
                continue
            add(name, phi, time.perf_counter() - start)
    result.checks += _checks(case, rows)


def rivals(case: Case, pose: Pose) -> dict[str, Callable[[Run], nn.Module]]:
    """The classical programs on the moving image as the affine map has brought it."""
    near = Pair(case.pair.fixed, moved(case.pair, pose)) if case.affine else case.pair

    def after(register: Callable[..., nn.Module], run: Run, *more: str) -> nn.Module:
        phi = register(near, *more, run)
        return Composition(phi, pose) if case.affine else phi

    found: dict[str, Callable[[Run], nn.Module]] = {
        b.label: partial(lambda r, run: after(r, run, "ncc"), b.register) for b in BASELINES.values()
    }
    return found | {name: partial(after, register) for name, register in RIVALS.items()}


def moved(pair: Pair, pose: Pose) -> Scan:
    """The moving image on the fixed grid, through the affine map."""
    image = nir.Images(pair).moving
    with torch.no_grad():
        parts = [image(pose(x)) for x in pair.fixed.grid.points().split(2**18)]
    return Scan(torch.cat(parts).reshape(pair.fixed.grid.shape), pair.fixed.grid, source="moving, affine")


def _affine(case: Case, run: Run) -> Pose:
    pose = Pose("affine", centre_mm=case.pair.fixed.grid.centre_mm)
    if case.affine:
        centred_pose(pose, case.pair)
        align(pose, case.pair, run.again())
    return pose.requires_grad_(False)


def _scores(case: Case, phi: nn.Module, psi: nn.Module | None, run: Run) -> dict[str, float]:
    phi = phi.to(run.device)
    fixed, moving = case.labels

    def on_cpu(x: Tensor) -> Tensor:
        mapped: Tensor = phi(x.to(run.device)).cpu()
        return mapped

    with torch.no_grad():
        warped = warped_labels(on_cpu, moving.values.long(), moving.grid, fixed.grid)
    overlap = dice(fixed.values.long(), warped)
    scores = {"dice": round(sum(overlap.values()) / len(overlap), 4)}
    voxels = MaskedVoxels(case.pair.fixed.grid, case.pair.fixed.mask)
    x = voxels.points(PROBES, run.again().generator("probes"), jitter=False)
    matrices = [calculus.jacobian(phi, part.to(run.device))[1].detach().cpu() for part in x.split(2**14)]
    shape = regularity(calculus.determinant(torch.cat(matrices)))
    scores["folding_percent"] = round(shape.folding_percent, 4)
    if psi is not None:
        back = inverse_consistency(phi, psi.to(run.device), x[:5000].to(run.device))
        spacing = sum(case.pair.fixed.grid.spacing_mm) / 3
        scores["inverse_voxels"] = round(back.mean_mm / spacing, 4)
        scores["inverse_q95_voxels"] = round(back.q95_mm / spacing, 4)
    return scores


def _checks(case: Case, rows: dict[str, dict[str, Any]]) -> list[Check]:
    overlap = {name: float(row["dice"]) for name, row in rows.items()}
    points = "NIR, isolated points, global NCC"
    start = overlap["affine" if case.affine else "no registration"]
    flow = rows["NIR, velocity"]
    return [
        Check(f"{case.name}: Dice over the start", overlap["NIR"] - start, CLEARLY),
        Check(f"{case.name}: Dice, windows over isolated points", overlap["NIR"] - overlap[points], 0.0),
        Check(
            f"{case.name}: the same under a bias field",
            overlap["NIR, bias field"] - overlap[f"{points}, bias field"],
            CLEARLY,
        ),
        Check(f"{case.name}: folding of the displacement", float(rows["NIR"]["folding_percent"]), 0.1, "<=", "%"),
        Check(f"{case.name}: folding of the flow", float(flow["folding_percent"]), 0.0, "<=", "%"),
        Check(f"{case.name}: inverse consistency of the flow", float(flow["inverse_voxels"]), 0.5, "<=", "voxels"),
    ]
