"""UncertaINR on real CT slices: how true the error bars of dropout, an ensemble, a sampler and bootstrapped TV are.

Slices of an abdomen (ct/slices_512.npz; every default was chosen on another person's chest) of 512 x 512 pixels are
scanned by exact integrals through their pixels, four rays per detector bin, with Gaussian noise of 40 dB, and
reconstructed on 128 x 128 pixels: another operator and a finer grid than any row of the table uses. Two views are held
out of every row. A posterior is judged inside the field of view, against the slice on the reconstruction's pixels.

The baseline is a constant standard deviation around the mean image of dropout: the true root mean square error, which
no user knows; it errs only in saying the same everywhere. TV is bootstrapped over views: drawn with replacement, the
weight fixed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scanfield.baselines import tv
from scanfield.bench.protocol import BenchResult, Check, data_path
from scanfield.data.attenuation import attenuation
from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.measurement import Measurement, Noise
from scanfield.data.scan import Scan
from scanfield.methods.reconstruction import uncertainr
from scanfield.metrics.calibration import STATED, Calibration, of_normal
from scanfield.metrics.image import psnr_db
from scanfield.operators.fov import field_of_view
from scanfield.operators.noise import gaussian_noise
from scanfield.operators.resample import resample
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.posterior import Posterior
from scanfield.tasks.reconstruction import Baselines, reconstruct
from scanfield.tasks.uncertainty import calibration

CASES = (("abdomen, level 64", 5, 40), ("abdomen, level 128", 7, 60))  # image, its index, views
PIXELS, SNR_DB, HELD_OUT = 128, 40.0, 2
BOOTSTRAPS = 40
FAST = replace(uncertainr.Config.fast(), steps=1000, burn_in=300, thinning=6)
ROWS = {
    "dropout": FAST,
    "ensemble of 5": replace(FAST, posterior="ensemble"),
    "Langevin": replace(FAST, posterior="sgld"),
}


def run(run: Run) -> BenchResult:
    """Every posterior on two slices, and the claims on dropout for each of them."""
    result = BenchResult()
    result.notes += [
        "ece: mean |coverage - level|. ece_widened, the published one and that of the checks: after widening all "
        "intervals of a row by the delta that suits it best, since a sigmoid cannot reach the zero of air",
        "nll in nats a pixel, of images in data ranges; deviation and rmse in HU",
        "5 members state normal intervals; 40 samples and more their quantiles",
    ]
    with np.load(data_path("ct/slices_512.npz"), allow_pickle=False) as file:
        images, pixel_mm = file["hu"], file["pixel_mm"]
    for name, index, views in CASES:
        grid = Grid.centred((*images.shape[:0:-1], 1), (float(pixel_mm[index]), float(pixel_mm[index]), 3.0))
        scan = Scan(torch.tensor(images[index].T[:, ::-1, None].copy(), dtype=torch.float32), grid, "HU")
        _judge(f"{views} views, {name}", scan, views, run, result)
    return result


def noisy_scan(scan: Scan, views: int, seed: int, pixels: int = PIXELS) -> Measurement[ProjectionGeometry]:
    """A parallel-beam scan with Gaussian noise of `SNR_DB`: sigma = ||y|| / (10^(SNR / 20) sqrt(M))."""
    spacing = scan.grid.spacing_mm[0] * scan.grid.shape[0] / pixels
    grid = scan.grid.resampled((spacing, spacing, scan.grid.spacing_mm[2]))
    clean = simulate_ct(scan, CtScanOptions(views=views, bin_mm=spacing), grid=grid)
    sigma = float(clean.values.square().mean().sqrt()) / 10 ** (SNR_DB / 20)
    values = gaussian_noise(clean.values, sigma, torch.Generator().manual_seed(seed))
    return replace(clean, values=values, noise=Noise("gaussian", sigma))


def bootstrapped_tv(
    data: Measurement[ProjectionGeometry], grid: Grid, generator: torch.Generator
) -> tuple[Tensor, Posterior]:
    """Total variation on all views, and on views drawn with replacement (Efron 1979): one drawn twice counts twice."""
    weight, views = tv.choose_weight(data, grid), data.acquisition.views
    images = []
    for _ in range(BOOTSTRAPS):
        chosen = torch.randint(views, (views,), generator=generator).sort().values.numpy()
        images.append(tv.solve(data.subset(chosen), grid, weight, iterations=100).volume.cpu())
    return tv.solve(data, grid, weight).volume.cpu(), Posterior.of(images)


def _judge(title: str, scan: Scan, views: int, run: Run, result: BenchResult) -> None:
    data = noisy_scan(scan, views, run.seed)
    mu = attenuation(scan)
    grid = data.acquisition.volume
    truth, mask = resample(mu.values, mu.grid, grid), field_of_view(data.acquisition, grid)
    found: dict[str, Calibration] = {}
    for name, config in ROWS.items():
        run.tell({"case": f"{title}, {name}"})
        again = run.again(quiet=True)
        rivals: Baselines = "fast" if name == "dropout" else "none"
        outcome = reconstruct(
            data,
            "uncertainr",
            config,
            again,
            holdout_views=HELD_OUT,
            baselines=rivals,
            reference=Scan(truth, grid, "1/mm"),
        )
        assert outcome.uncertainty is not None
        mean, scores = outcome.uncertainty.image.mean, outcome.uncertainty.calibrations
        found[name] = scores["reference"]
        result.table.append(_row(title, name, mean, truth, mask, found[name], outcome.table.rows[0].values["seconds"]))
        result.table[-1]["ece_held_out_views"] = round(scores["held-out"].ece, 4)
        if name == "dropout":
            constant = torch.full_like(mean, found[name].rmse)
            found["constant"] = of_normal(mean, constant, truth, mask)
            result.table.append(_row(title, "constant deviation", mean, truth, mask, found["constant"], None))
        for row, picture in zip(outcome.table.rows[1:], outcome.pictures[1:], strict=False):
            score = round(psnr_db(picture.values, truth, mask), 2)
            result.table.append({"scan": title, "image": row.label, "psnr_db": score})
    run.tell({"case": f"{title}, bootstrapped TV"})
    fitted, _ = data.hold_out(HELD_OUT)
    fitted = replace(fitted, values=fitted.values.to(run.device))
    image, rival = bootstrapped_tv(fitted, grid, run.generator(f"bootstrap {title}"))
    result.table.append({"scan": title, "image": "TV", "psnr_db": round(psnr_db(image, truth, mask), 2)})
    found["TV"] = calibration(rival, truth, mask)
    result.table.append(_row(title, "TV, bootstrapped", rival.mean, truth, mask, found["TV"], None))
    _claims(title, found, result)


def _row(
    title: str, name: str, mean: Tensor, truth: Tensor, mask: Tensor, found: Calibration, seconds: float | None
) -> dict[str, Any]:
    to_hu = 1000 / MU_WATER_PER_MM
    row: dict[str, Any] = {"scan": title, "image": name, "psnr_db": round(psnr_db(mean, truth, mask), 2)}
    for level, covered in zip(STATED, found.coverage, strict=True):
        row[f"coverage_{100 * level:.0f}"] = round(covered, 3)
    row |= {"ece": round(found.ece, 4), "ece_widened": round(found.ece_widened, 4)}
    row["widening_hu"] = float(f"{to_hu * found.widening:.3g}")
    row["nll"] = round(found.nll, 2)
    if math.isfinite(found.rank_correlation):
        row["rank_correlation"] = round(found.rank_correlation, 3)
    row |= {"deviation_hu": round(to_hu * found.sharpness, 1), "rmse_hu": round(to_hu * found.rmse, 1)}
    if seconds is not None:
        row["seconds"] = round(seconds, 1)
    return row


def _claims(title: str, found: dict[str, Calibration], result: BenchResult) -> None:
    """The card's thresholds; whether dropout beats the ensemble is said, and no condition."""
    dropout, constant, ensemble = found["dropout"], found["constant"], found["ensemble of 5"]
    ratio = dropout.ece_widened / constant.ece_widened
    result.checks += [
        Check(f"{title}: calibration error of dropout / of the constant deviation", ratio, 0.7, "<="),
        Check(f"{title}: rank correlation of |error| and deviation", dropout.rank_correlation, 0.3),
    ]
    result.notes.append(f"{title}: without widening that ratio is {dropout.ece / constant.ece:.2f}")
    verdict = "beats" if dropout.ece_widened < ensemble.ece_widened else "does not beat"
    numbers = f"{dropout.ece_widened:.3f} against {ensemble.ece_widened:.3f}"
    result.notes.append(f"{title}: dropout {verdict} the ensemble, calibration error {numbers}")
