"""IDIR on a breathing liver and on a CT with a known warp, beside B-splines; what a step costs.

Liver: subject 18 of the ETH Zurich 4-D liver MRI set, exhale (fixed) to one inhale phase (moving), 32 expert landmarks
in the liver that move by 20.1 mm on average and 20 outside; the liver slides along the wall. The fast preset's
settings were chosen on the other phase of this subject, on subject 19 and on an abdominal CT, after a first look at
this pair.

CT: a chest of 1.8 x 1.8 x 3 mm. The fixed image is the scan seen through a smooth known map (Gaussian bumps of 35 to
60 mm), read by cubic splines at that resolution; both images are then averaged to voxels of 3.5 x 3.5 x 3 mm and get
independent noise. Landmarks are 300 random points of the body at strong edges.

Published implementation and elastix: measured beforehand on the liver pair, on two cores of a machine of this kind (see
the notes); where itk-elastix and antspyx can be imported, elastix and ANTs are also run here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor, nn

from scanfield.baselines.registration import BASELINES
from scanfield.bench.protocol import BenchResult, Check, data_path
from scanfield.bench.registration_rivals import RIVALS, mapped_by_ants
from scanfield.bench.timing import medians
from scanfield.data.nifti import read_nifti
from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.errors import InputError, MissingExtra
from scanfield.fields import calculus
from scanfield.fields.field import Field
from scanfield.fitting.groups import adam
from scanfield.kernels.backend import using
from scanfield.methods.registration import idir
from scanfield.metrics.registration import landmark_errors, regularity
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.lattice import MaskedVoxels

LIVER, PHASE = "registration/eth_liver_18.npz", "cyc_1_10"
CHEST = "ct/chest_cptac_pda_C3N-00249.nii.gz"
PAPER_STEPS = 1200  # of the published implementation in the comparison below
PUBLISHED_MM, PUBLISHED_S = 3.51, 662.0
ELASTIX_MM, ELASTIX_S = 2.97, 51.0
RELU_RATE = 3e-3  # the best of 3e-4, 1e-3 and 3e-3 on the liver's other phase
BUMPS, BUMP_MM, SHIFT_MM = 14, (35.0, 60.0), 14.0
LANDMARKS, BORDER_MM, NOISE_HU = 300, 20.0, 15.0
BODY_HU = -400.0
CROSS = ndimage.generate_binary_structure(2, 1)[..., None]  # within slices
PROBES = 100_000
ROUND_TRIP = 2000  # voxel centres that ANTs maps
POINTS = 10_000  # of the steps that are timed


@dataclass(frozen=True, eq=False)
class Case:
    """A pair with landmarks: by group, the same places in the fixed and the moving image."""

    name: str
    pair: Pair
    marks: dict[str, tuple[Tensor, Tensor]]


class KnownMap(nn.Module):
    """phi(x) = x + sum_k a_k exp(-|x - c_k|^2 / (2 s_k^2)), random bumps in a grid's box."""

    def __init__(self, grid: Grid, generator: torch.Generator) -> None:
        super().__init__()
        corners = torch.tensor(grid.corners_mm())
        low, high = corners.amin(0), corners.amax(0)
        low, high = low + 0.15 * (high - low), high - 0.15 * (high - low)
        self.centre = low + (high - low) * torch.rand(BUMPS, 3, generator=generator, dtype=torch.float64)
        self.width = BUMP_MM[0] + (BUMP_MM[1] - BUMP_MM[0]) * torch.rand(
            BUMPS, generator=generator, dtype=torch.float64
        )
        way = torch.randn(BUMPS, 3, generator=generator, dtype=torch.float64)
        self.shift = SHIFT_MM * way / way.norm(dim=-1, keepdim=True)

    def forward(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        place = x.double()
        square = (place[:, None] - self.centre).square().sum(-1)
        return (place + (-square / (2 * self.width**2)).exp() @ self.shift).to(x.dtype)


def run(run: Run) -> BenchResult:
    """All fits on both pairs, then the cost of a step."""
    result = BenchResult()
    for case in (liver(), simulated(read_nifti(data_path(CHEST)), run.seed)):
        _register(case, run, result)
    _speed(run, result)
    result.notes += [
        f"Liver, measured beforehand on two cores: elastix (NCC, bending energy, 12 mm B-spline, 4 levels) "
        f"{ELASTIX_MM} mm in {ELASTIX_S:.0f} s, diffeomorphic demons 6.3 mm, the published implementation of IDIR "
        f"(SIREN, rate 1e-4, Jacobian term, {PAPER_STEPS} steps of 10,000 points) {PUBLISHED_MM} mm in "
        f"{PUBLISHED_S:.0f} s.",
        "A step of the published implementation at 10,000 points on two cores: 0.56 s (Jacobian), 6.4 s (bending).",
        "Folding is the share of voxel centres (of the fixed mask, where there is one) with det <= 0.",
        "The map of the CT is smooth: it favours smooth fields. The liver slides along the wall: no row models that.",
    ]
    return result


# The data -------------------------------------------------------------------------------------------------------------


def liver(file: str = LIVER, phase: str = PHASE) -> Case:
    """Exhale and an inhale phase of a liver MRI, with expert landmarks in mm."""
    with np.load(data_path(file)) as data:
        affine = np.diag([*data["spacing_mm"].astype(np.float64), 1.0])
        scans = [
            Scan(torch.from_numpy(data[key].astype(np.float32)), Grid(data[key].shape, affine), source=f"{file}, {key}")
            for key in ("exhMaster", phase)
        ]
        marks = {
            group: tuple(torch.from_numpy(data[f"{key}_lm_{group}"].astype(np.float64)) for key in ("exhMaster", phase))
            for group in ("liver", "outside")
        }
    return Case("liver", Pair(*scans), {group: (a, b) for group, (a, b) in marks.items()})


def simulated(full: Scan, seed: int) -> Case:
    """A CT and its image under a known map, on voxels of 2 x 2 x 1 of the scan's; the body is the fixed mask."""
    generator = torch.Generator().manual_seed(seed)
    phi = KnownMap(full.grid, generator)
    grid, values = full.grid.coarsened((2, 2, 1)), full.values.double().numpy()
    moving = values.reshape(grid.shape[0], 2, grid.shape[1], 2, grid.shape[2]).mean(axis=(1, 3))
    coefficients = ndimage.spline_filter(values, order=3, mode="nearest")
    parts = []
    for start in range(0, full.grid.size, 2**19):
        place = full.grid.to_voxel(phi(full.grid.points(start, start + 2**19).double()))
        parts.append(ndimage.map_coordinates(coefficients, place.T.numpy(), order=3, mode="nearest", prefilter=False))
    warped = np.concatenate(parts).reshape(full.grid.shape).clip(values.min(), values.max())
    fixed = warped.reshape(grid.shape[0], 2, grid.shape[1], 2, grid.shape[2]).mean(axis=(1, 3))
    a, b = (
        torch.from_numpy(image).float() + NOISE_HU * torch.randn(image.shape, generator=generator)
        for image in (fixed, moving)
    )
    body = torch.from_numpy(body_mask(fixed))
    x = _edges(fixed, body, grid, generator)
    pair = Pair(Scan(a, grid, "HU", body, source="CT, warped"), Scan(b, grid, "HU", source="CT"))
    return Case("CT", pair, {"edges": (x, phi(x))})


def body_mask(hu: np.ndarray) -> np.ndarray:
    """The largest object above -400 HU, with what it encloses slice by slice."""
    labels, _ = ndimage.label(ndimage.binary_opening(hu > BODY_HU, CROSS))
    body = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return np.stack([ndimage.binary_fill_holes(body[..., k]) for k in range(hu.shape[2])], axis=-1)


def _edges(image: np.ndarray, mask: Tensor, grid: Grid, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """Random points among the tenth of the mask with the strongest edges, away from the image's border."""
    slope = torch.from_numpy(ndimage.gaussian_gradient_magnitude(image, 1.0))
    inner = mask.clone()
    for axis, spacing in enumerate(grid.spacing_mm):
        width = int(np.ceil(BORDER_MM / spacing))
        inner.index_fill_(axis, torch.cat([torch.arange(width), grid.shape[axis] - 1 - torch.arange(width)]), False)
    strong = inner & (slope >= np.quantile(slope[inner].numpy(), 0.9))
    return MaskedVoxels(grid, strong).points(LANDMARKS, generator).double()


# The rows -------------------------------------------------------------------------------------------------------------


def methods(case: str) -> dict[str, idir.Config]:
    """The settings that are compared, by the name of their row."""
    fast = idir.Config.fast()
    rows = {"fast": fast, "fast, penalty at every point": replace(fast, regulariser_share=1.0)}
    if case == "liver":
        rows["published setting"] = replace(idir.Config(), steps=PAPER_STEPS)
        rows["fast, images not smoothed"] = replace(fast, smoothing_mm=(0.0,))
        rows["fast, each axis to [-1, 1]"] = replace(fast, scaling="per-axis")
        rows["fast, published omega"] = replace(fast, omega=idir.Config().omega)
    rows["fast, no penalty"] = replace(fast, regulariser="none", fold_strength=0.0)
    rows["fast, folds cost nothing extra"] = replace(fast, fold_strength=0.0)
    rows["fast, ReLU"] = replace(fast, activation="relu", learning_rate=RELU_RATE)
    return rows


def _register(case: Case, run: Run, result: BenchResult) -> None:
    """Every row of a pair, and its checks."""
    rows: dict[str, dict[str, Any]] = {}

    def add(name: str, phi: nn.Module, seconds: float) -> None:
        rows[name] = {"pair": case.name, "row": name, **_scores(case, phi, run), "seconds": round(seconds, 1)}
        result.table.append(rows[name])

    add("no registration", nn.Identity(), 0.0)
    for name, config in methods(case.name).items():
        run.tell({"case": f"{case.name}: {name}"})
        fitted = idir.fit(config, case.pair, run.again())
        add(name, idir.transform(fitted), fitted.logs[0].seconds)
        if name == "fast":
            _round_trip(case, idir.transform(fitted), result)
    rivals: dict[str, Callable[[Pair, Run], nn.Module]] = {
        b.label: partial(_similar, b.register) for b in BASELINES.values()
    }
    for name, register in (rivals | RIVALS).items():
        run.tell({"case": f"{case.name}: {name}"})
        start = time.perf_counter()
        try:
            phi = register(case.pair, run.again())
        except InputError as error:
            result.notes.append(f"{name} is missing from the table: {error}.")
            continue
        add(name, phi, time.perf_counter() - start)
    result.checks += _checks(case, rows)


def _similar(register: Callable[..., nn.Module], pair: Pair, run: Run) -> nn.Module:
    return register(pair, "ncc", run)


def _round_trip(case: Case, phi: nn.Module, result: BenchResult) -> None:
    """Whether ANTs maps voxel centres with our file as we do."""
    voxels = MaskedVoxels(case.pair.fixed.grid, case.pair.fixed.mask)
    x = voxels.points(ROUND_TRIP, torch.Generator().manual_seed(0), jitter=False)
    try:
        theirs = mapped_by_ants(phi, case.pair.fixed.grid, x)
    except MissingExtra as error:
        result.notes.append(f"the file was not read by ANTs: {error}.")
        return
    with torch.no_grad():
        worst = float((phi(x).double() - theirs).norm(dim=-1).max())
    result.checks.append(Check(f"{case.name}: points by ANTs with our file", worst, 0.01, "<=", "mm"))


def _scores(case: Case, phi: nn.Module, run: Run) -> dict[str, float]:
    scores: dict[str, float] = {}
    with torch.no_grad():
        for group, (x, y) in case.marks.items():
            near = x.float()
            mapped = x + (phi(near.to(run.device)).cpu() - near).double()
            errors = landmark_errors(x, y, mapped, case.pair.moving.grid)
            scores[f"{group}_tre_mm"] = round(errors.final.mean_mm, 3)
            scores[f"{group}_tre_snapped_mm"] = round(errors.final_snapped.mean_mm, 3)
            scores[f"{group}_tre_q95_mm"] = round(errors.final.q95_mm, 3)
        voxels = MaskedVoxels(case.pair.fixed.grid, case.pair.fixed.mask)
        x = voxels.points(PROBES, run.again().generator("probes"), jitter=False)
        matrices = [calculus.jacobian(phi, part.to(run.device))[1].cpu() for part in x.split(2**14)]
    shape = regularity(calculus.determinant(torch.cat(matrices)))
    scores["folding_percent"] = round(shape.folding_percent, 4)
    scores["sd_log_det"] = round(shape.sd_log_determinant, 4)
    return scores


def _checks(case: Case, rows: dict[str, dict[str, Any]]) -> list[Check]:
    key = f"{next(iter(case.marks))}_tre_mm"
    tre = {name: float(row[key]) for name, row in rows.items()}
    fold = {name: float(row["folding_percent"]) for name, row in rows.items()}
    fast, every, free = "fast", "fast, penalty at every point", "fast, no penalty"
    checks = []

    def at_most(what: str, value: float, threshold: float, unit: str = "mm") -> None:
        checks.append(Check(f"{case.name}: {what}", value, threshold, "<=", unit))

    if case.name == "liver":
        at_most("TRE against elastix, measured beforehand", tre[fast], ELASTIX_MM)
        at_most("TRE against the published implementation", tre[fast], PUBLISHED_MM)
        at_most(
            "seconds against a third of the published implementation's", rows[fast]["seconds"], PUBLISHED_S / 3, "s"
        )
        at_most("TRE against our published setting + 5 %", tre[fast], 1.05 * tre["published setting"])
        at_most("TRE against images not smoothed", tre[fast], tre["fast, images not smoothed"])
    else:
        fallen = 100 * (1 - tre[fast] / tre["no registration"])
        checks.append(Check(f"{case.name}: fall of the landmark error", fallen, 70.0, unit="%"))
    for rival in ("SimpleITK B-spline", *RIVALS):
        if rival in tre:
            at_most(f"TRE against {rival}", tre[fast], tre[rival])
    at_most("TRE against the penalty at every point + 5 %", tre[fast], 1.05 * tre[every])
    at_most("TRE against ReLU", tre[fast], tre["fast, ReLU"])
    at_most("folding", fold[fast], 0.1, "%")
    checks.append(Check(f"{case.name}: folding without penalty, over that", fold[free] - fold[fast], 0.0, ">=", "%"))
    return checks


# What a step costs ----------------------------------------------------------------------------------------------------


class _NoJets(nn.Module):
    """A network whose derivatives are left to automatic differentiation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, c: Tensor) -> Tensor:
        out: Tensor = self.network(c)
        return out


def _speed(run: Run, result: BenchResult) -> None:
    """A step of `POINTS` points: ours, and the same loss in plain torch with autograd's derivatives at every point."""
    pair = liver().pair
    paper, fast = idir.Config(), idir.Config.fast()
    curved = replace(paper, regulariser="bending")
    plain = {
        "autograd, jacobian": _step(paper, pair, run, plain=True),
        "ours, jacobian": _step(paper, pair, run),
        "ours, fast preset": _step(fast, pair, run),
    }
    run.tell({"case": "a step with the Jacobian term"})
    seconds = medians(plain, run.device)
    run.tell({"case": "a step with the bending energy"})
    seconds |= medians(
        {"autograd, bending": _step(curved, pair, run, plain=True), "ours, bending": _step(curved, pair, run)},
        run.device,
        rounds=3,
    )
    for name, value in seconds.items():
        slow = seconds["autograd, bending" if "bending" in name else "autograd, jacobian"]
        row = {"step": name, "ms": round(1e3 * value, 1), "times_autograd": round(slow / value, 2)}
        result.table.append(row)
    for name, base, least in (
        ("ours, fast preset", "autograd, jacobian", 3.0),
        ("ours, jacobian", "autograd, jacobian", 1.5),
        ("ours, bending", "autograd, bending", 8.0),
    ):
        result.checks.append(Check(f"a step, {name}: over {base}", seconds[base] / seconds[name], least, unit="x"))


def _step(config: idir.Config, pair: Pair, run: Run, *, plain: bool = False) -> Callable[[], object]:
    """One step of a fit with the settings of `config`; `plain`: reference backend, no jets."""
    run = run.again()
    field: Field = idir.build(config, idir.spec_of(config, pair, run)).to(run.device)
    if plain:
        field.network = _NoJets(field.network)
    images = idir.Images(config, pair, config.smoothing_mm[-1]).to(run.device)
    voxels, draws = MaskedVoxels(pair.fixed.grid, pair.fixed.mask), run.generator("points")
    optimiser = adam()(list(field.parameters()), config.learning_rate)

    def step() -> Tensor:
        with using("reference" if plain else run.backend):
            x = voxels.points(POINTS, draws, jitter=config.jitter).to(run.device)
            parts = idir.terms(config, field, images, x)
            factors = idir.weights(config)
            total = torch.stack([factors.get(name, 1.0) * part for name, part in parts.items()]).sum()
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
        return total

    return step
