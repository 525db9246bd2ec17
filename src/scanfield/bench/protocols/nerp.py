"""NeRP on real CT with a simulated change: with and without the prior, beside FBP, TV and PICCS.

The prior is a slice of an abdomen (ct/slices_512.npz; no default was tuned on this person) of 512 x 512 pixels, or the
middle of another one's volume (ct/totalseg_example_ct.nii.gz); the new state is the same image after a smooth
deformation of up to 6 mm with a lesion that the prior does not have: the change is simulated, the data hold no real
follow-up. The new state is scanned by exact integrals through its voxels, several rays per detector pixel, and
reconstructed on coarser ones: another operator and a finer grid than any row of the table uses. One view in twenty, at
least one, is held out of all rows. The wrong prior is another patient's chest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.baselines import piccs, tv
from scanfield.bench.protocol import BenchResult, Check, data_path
from scanfield.data.attenuation import attenuation
from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.measurement import Measurement
from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.fields.image import ImageField
from scanfield.methods.reconstruction.nerp import Config
from scanfield.metrics.change import changed_voxels, recovered
from scanfield.metrics.image import compare, psnr_db
from scanfield.operators.fbp import filtered_backprojection
from scanfield.operators.fdk import feldkamp
from scanfield.operators.fov import field_of_view
from scanfield.operators.resample import resample
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.reconstruction import reconstruct

DEFORMATION_MM = 6.0
LESION_HU, LESION_EDGE_MM = 100.0, 1.0
WAVES = 4  # of the deformation
WRONG = 1  # the slice that is another patient's


WITH, WITHOUT, WRONG_PRIOR = "NeRP with prior", "NeRP without prior", "NeRP with another patient's prior"


@dataclass(frozen=True)
class Case:
    """One scan: the slice (None: a volume in a cone beam), place and radius of the lesion, views, voxel size, photons
    (None: noise-free); the gain over the fit without prior that is claimed; whether a wrong prior is tried, too."""

    name: str
    index: int | None
    lesion_mm: tuple[float, float, float]
    views: int
    spacing_mm: tuple[float, float, float]
    photons: float | None
    gain_db: float
    wrong: bool = False
    radius_mm: float = 12.0

    @property
    def volume(self) -> bool:
        """Whether a volume is scanned in a cone beam."""
        return self.index is None

    def options(self, seed: int) -> CtScanOptions:
        """The scanner; `seed` is of the noise."""
        if self.volume:
            return CtScanOptions(
                beam="cone", views=self.views, bin_mm=10.5, row_mm=10.5, photons=self.photons, seed=seed
            )
        return CtScanOptions(views=self.views, bin_mm=self.spacing_mm[0], photons=self.photons, seed=seed)


LIVER, CYST = (-67.0, 26.0, 0.0), (36.0, 57.0, 0.0)
PIXEL_MM = (4 * 1.03, 4 * 1.03, 3.0)
CASES = (
    Case("liver, 20 views", 7, LIVER, 20, PIXEL_MM, None, 1.5, wrong=True),
    Case("liver, 10 views", 7, LIVER, 10, PIXEL_MM, None, 2.0),
    Case("liver, 20 views, 1e5 photons", 7, LIVER, 20, PIXEL_MM, 1e5, 1.5),
    Case("cyst, 20 views", 5, CYST, 20, PIXEL_MM, None, 1.5),
    Case("cyst, 10 views", 5, CYST, 10, PIXEL_MM, None, 2.0),
    Case("liver, 20 views, 256 x 256, 1e5 photons", 7, LIVER, 20, (2 * 1.03, 2 * 1.03, 3.0), 1e5, 1.5),
    Case(
        "abdomen in a cone beam, 20 views", None, (-46.0, -76.0, 13.0), 20, (6.0, 6.0, 6.0), None, 1.5, radius_mm=15.0
    ),
)


def run(run: Run) -> BenchResult:
    """Every case with the prior, without it, and one with the prior of another person."""
    result = BenchResult()
    result.notes = [
        "The change is simulated: a smooth deformation and a lesion. A real follow-up also differs in noise, contrast "
        "agent and bowel, and comes with the errors of its registration.",
        "TV and PICCS choose their weights on a tenth of the views that are fitted; they run on the run's device.",
        "PSNR against the new state inside the field of view; 'changed': in the voxels that hold 90 % of the squared "
        "change, same data range; 'change': how much of that change is shown; 'lesion': of the contrast of the new "
        "lesion, inside 0.8 of its radius.",
        "Without prior: the same network, steps and data, at the rate for a random start.",
    ]
    with np.load(data_path("ct/slices_512.npz"), allow_pickle=False) as file:
        images, pixel_mm = file["hu"], file["pixel_mm"]

    def image(index: int) -> Scan:
        spacing = float(pixel_mm[index])
        grid = Grid.centred((512, 512, 1), (spacing, spacing, 3.0))
        return attenuation(Scan(torch.tensor(images[index].T[:, ::-1, None].copy(), dtype=torch.float32), grid, "HU"))

    for case in CASES:
        before = _volume() if case.index is None else image(case.index)
        _judge(case, before, image(WRONG) if case.wrong else None, run, result)
    return result


def _volume() -> Scan:
    """The middle of an abdomen, 64 slices of 3 mm voxels, about the origin."""
    scan = read_nifti(data_path("ct/totalseg_example_ct.nii.gz"))
    first = (scan.grid.shape[2] - 64) // 2
    values = scan.values[:, :, first : first + 64].float()
    return attenuation(Scan(values, Grid.centred((*scan.grid.shape[:2], 64), scan.grid.spacing_mm), "HU"))


def follow_up(scan: Scan, lesion_mm: tuple[float, float, float], radius_mm: float, seed: int = 0) -> Scan:
    """The image some time later: deformed by a sum of plane waves of up to `DEFORMATION_MM`, with a new lesion.

    Args:
        scan: attenuation in 1/mm.
        lesion_mm: world position of the lesion's centre.
        radius_mm: of the lesion.
    """
    grid, draws = scan.grid, np.random.default_rng(seed)
    x = grid.points()
    half = 0.5 * grid.shape[0] * grid.spacing_mm[0]
    shift = torch.zeros_like(x)
    for _ in range(WAVES):
        wave, phase, direction = 2 * draws.normal(size=2) / half, draws.uniform(0, 2 * np.pi), draws.normal(size=2)
        height = torch.sin(x[:, :2] @ torch.tensor(wave, dtype=torch.float32) + float(phase))
        shift[:, :2] += height[:, None] * torch.tensor(direction / np.linalg.norm(direction), dtype=torch.float32)
    shift *= DEFORMATION_MM / float(shift.norm(dim=1).max())
    values = ImageField(scan.values, grid)(x + shift).reshape(grid.shape)
    ball = torch.sigmoid((radius_mm - distance_mm(grid, lesion_mm)) / LESION_EDGE_MM)
    return replace(scan, values=values + LESION_HU / 1000 * MU_WATER_PER_MM * ball)


def distance_mm(grid: Grid, centre_mm: tuple[float, float, float]) -> Float[Tensor, "n0 n1 n2"]:
    """Distance of every voxel centre from a point."""
    return (grid.points() - torch.tensor(centre_mm)).norm(dim=1).reshape(grid.shape)


def _judge(case: Case, before: Scan, wrong: Scan | None, run: Run, result: BenchResult) -> None:
    run.tell({"case": case.name})
    now = follow_up(before, case.lesion_mm, case.radius_mm)
    grid = before.grid.resampled(case.spacing_mm)
    data = simulate_ct(now, case.options(run.seed), grid=grid)
    unseen = max(1, round(case.views / 20))
    fitted = data.hold_out(unseen)[0]
    judge = _Judge(case, before, now, grid, data.acquisition)
    found: dict[str, dict[str, Any]] = {}

    def fit(label: str, prior: Scan | None) -> None:
        again = run.again(quiet=True)
        outcome = reconstruct(data, "nerp", Config.fast(), again, baselines="none", holdout_views=unseen, prior=prior)
        found[label] = judge.line(label, outcome.pictures[0].values, outcome.table.rows[0].values)

    def rival(label: str, image: Callable[[Measurement[ProjectionGeometry]], Tensor], device: torch.device) -> None:
        start = time.perf_counter()
        values = image(replace(fitted, values=fitted.values.to(device))).cpu()
        found[label] = judge.line(label, values, {"seconds": time.perf_counter() - start})

    fit(WITH, before)
    fit(WITHOUT, None)
    if wrong is not None:
        fit(WRONG_PRIOR, wrong)
    found["prior image"] = judge.line("prior image", judge.old, {})
    direct = "FDK" if case.volume else "FBP"
    rival(direct, lambda data: _direct(data, grid), torch.device("cpu"))
    rival("TV", lambda data: tv.reconstruct(data, grid), run.device)
    rival("PICCS", lambda data: piccs.reconstruct(data, grid, before), run.device)
    result.table += found.values()
    ours, scratch, prior = (found[label] for label in (WITH, WITHOUT, "prior image"))
    gain, changed = ours["psnr_db"] - scratch["psnr_db"], ours["changed_psnr_db"] - prior["changed_psnr_db"]
    result.checks += [
        Check(f"{case.name}: over no prior", gain, case.gain_db, unit="dB"),
        Check(f"{case.name}: over the prior where it changed", changed, 2.0, unit="dB"),
        Check(f"{case.name}: contrast of the new lesion", ours["lesion_percent"], 50.0, unit="%"),
        Check(f"{case.name}: over {direct}", ours["psnr_db"] - found[direct]["psnr_db"], 0.0, unit="dB"),
    ]


def _direct(data: Measurement[ProjectionGeometry], grid: Grid) -> Tensor:
    """FBP, or FDK of a cone beam, with the plain ramp."""
    if data.acquisition.beam == "cone":
        return feldkamp(data.values, data.acquisition, grid)
    return filtered_backprojection(data.values, data.acquisition, grid)


class _Judge:
    """The lines of one case's table: every image against the new state, and against what changed."""

    def __init__(self, case: Case, before: Scan, now: Scan, grid: Grid, acquisition: ProjectionGeometry) -> None:
        self.case = case
        self.old, self.new = (resample(scan.values, scan.grid, grid) for scan in (before, now))
        self.mask = field_of_view(acquisition, grid)
        self.changed = changed_voxels(self.old, self.new, self.mask)
        self.lesion = distance_mm(grid, case.lesion_mm) < 0.8 * case.radius_mm

    def line(self, label: str, image: Tensor, values: dict[str, float]) -> dict[str, Any]:
        seen = compare(image, self.new, self.mask)
        shown, true = ((x - self.old)[self.lesion].mean() for x in (image, self.new))
        line: dict[str, Any] = {
            "scan": self.case.name,
            "image": label,
            "psnr_db": round(seen.psnr_db, 2),
            "ssim": round(seen.ssim, 3),
            "changed_psnr_db": round(psnr_db(image, self.new, self.changed, seen.data_range), 2),
            "change_percent": round(100 * recovered(image, self.old, self.new, self.changed)),
            "lesion_percent": round(100 * float(shown / true), 1),
        }
        measured = {"held_out_rms": "held_out", "seconds": "seconds"}
        return line | {name: round(values[key], 4) for name, key in measured.items() if key in values}
