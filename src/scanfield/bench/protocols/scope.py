"""SCOPE on real CT slices: sparse-view parallel and fan beam, beside FBP, interpolated sinograms, CGLS, SIRT and TV.

Slices of an abdomen (ct/slices_512.npz; no default was tuned on this person) of 512 x 512 pixels are scanned by exact
integrals through their pixels, four rays per detector bin, and reconstructed on coarser pixels: another operator and a
finer grid than any row of the table uses. Every image is scored against the FBP of a dense noise-free scan and against
the original image; two views or 5 % are held out from all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from scanfield.bench.protocol import BenchResult, Check, data_path
from scanfield.data.scan import Scan
from scanfield.methods.reconstruction.scope import Config
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.reconstruction import reconstruct

_SLICES = {"abdomen, level 64": 5, "abdomen, level 128": 7}


@dataclass(frozen=True)
class Case:
    """One scan: `pixels` per side of the reconstruction, `photons` None for noise-free; which claims it carries."""

    image: str
    beam: Literal["parallel", "fan"]
    views: int
    pixels: int
    photons: float | None = None
    steps: int = Config.fast().steps
    claims: Literal["card", "gain", "paper"] = "gain"


CASES = (
    Case("abdomen, level 64", "parallel", 20, 128, claims="card"),
    Case("abdomen, level 64", "parallel", 40, 128, claims="card"),
    Case("abdomen, level 64", "parallel", 60, 128, claims="card"),
    Case("abdomen, level 128", "fan", 60, 128, claims="card"),
    Case("abdomen, level 128", "parallel", 40, 256, 1e5),
    Case("abdomen, level 128", "fan", 40, 256, 1e5),
    Case("abdomen, level 64", "parallel", 90, 256, steps=15_000, claims="paper"),
)


def run(run: Run) -> BenchResult:
    """All cases; the claims of the card on noise-free scans, the gain over FBP on noisy ones, the paper's 90 views."""
    result = BenchResult()
    result.notes.append("PSNR inside the field of view, data range max - min of the reference; 'original' is the image")
    with np.load(data_path("ct/slices_512.npz"), allow_pickle=False) as file:
        images, pixel_mm = file["hu"], file["pixel_mm"]
    for case in CASES:
        index = _SLICES[case.image]
        spacing = float(pixel_mm[index])
        grid = Grid.centred((512, 512, 1), (spacing, spacing, 3.0))
        scan = Scan(torch.tensor(images[index].T[:, ::-1, None].copy(), dtype=torch.float32), grid, "HU")
        _judge(case, scan, run, result)
    return result


def _judge(case: Case, scan: Scan, run: Run, result: BenchResult) -> None:
    factor = 512 // case.pixels
    spacing = scan.grid.spacing_mm[0] * factor
    options = CtScanOptions(
        beam=case.beam,
        detector="arc" if case.beam == "fan" else "flat",
        views=case.views,
        bin_mm=spacing * (949 / 541 if case.beam == "fan" else 1.0),
        photons=case.photons,
        seed=run.seed,
    )
    noise = "noise-free" if case.photons is None else f"{case.photons:.0e} photons"
    title = f"{case.views} views {case.beam}, {case.pixels}x{case.pixels}, {noise}, {case.image}"
    run.tell({"case": title})
    data = simulate_ct(scan, options, grid=scan.grid.resampled((spacing, spacing, 3.0)))
    config = replace(Config.fast(), steps=case.steps)
    outcome = reconstruct(data, "scope", config, run.again(quiet=True), baselines="all", reference=scan)
    dense = {}
    for row in outcome.table.rows:
        values: dict[str, Any] = {
            "scan": title,
            "image": row.label,
            "psnr_db_vs_dense_fbp": round(row.values["psnr_db:dense-fbp"], 2),
            "ssim_vs_dense_fbp": round(row.values["ssim:dense-fbp"], 4),
            "psnr_db_vs_original": round(row.values["psnr_db:reference"], 2),
            "ssim_vs_original": round(row.values["ssim:reference"], 4),
            "held_out_rms": round(row.values["held_out"], 5),
            "seconds": round(row.values["seconds"], 1),
        }
        result.table.append(values)
        dense[row.name] = row.values["psnr_db:dense-fbp"]
    short = f"{case.views} views {case.beam} {case.pixels}"
    ours = dense["scope"]
    result.checks.append(
        Check(f"{short}: over sparse FBP", ours - dense["fbp"], 3.5 if case.claims == "card" else 3.0, unit="dB")
    )
    if case.claims == "card":
        result.checks.append(Check(f"{short}: over the field's own image", ours - dense["scope-field"], 0.7, unit="dB"))
        result.checks.append(
            Check(f"{short}: over linear sinogram interpolation", ours - dense["linear-fbp"], 0.0, unit="dB")
        )
    if case.claims == "paper":
        result.checks.append(Check(f"{short}: of the order of the published 40.45 dB", ours, 38.0, unit="dB"))
