"""Sets of fields in a pipeline: how they are fitted, how true their uncertainty is, and the files they become."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.data.nifti import write_nifti
from scanfield.errors import InputError
from scanfield.fitting.regimes.ensemble import fit_members
from scanfield.methods import api
from scanfield.metrics.calibration import STATED, Calibration, of_normal, of_samples
from scanfield.operators.noise import deviation_of
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.posterior import Posterior
from scanfield.tasks.result import Reconstruction

LEVEL = 0.9  # of the interval that is written
LARGEST_FILE = 2**28  # numbers of all samples that are still written


@dataclass(eq=False)
class Uncertainty:
    """The posterior of a result's image, and its calibration by what it was judged on ('reference', 'held-out')."""

    image: Posterior
    calibrations: dict[str, Calibration] = field(default_factory=dict)


def fit_result(fit: Callable[[Run], Reconstruction], run: Run, ensemble: int | None) -> Reconstruction:
    """The result of one fit, or of an ensemble of them.

    Raises:
        InputError: an ensemble of fewer than two.
    """
    return fit(run) if ensemble is None else Reconstruction.ensemble(fit_members(fit, ensemble, run))


def uncertainty_of(result: Reconstruction, grid: Grid) -> Uncertainty | None:
    """The posterior of the result's image on `grid`, if it has one."""
    return Uncertainty(result.posterior(grid)) if result.has_posterior else None


def calibration(
    posterior: Posterior, truth: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"], *, data_range: float | None = None
) -> Calibration:
    """Of intervals as `Posterior.interval` gives them: quantiles of many samples, a normal distribution for a few."""
    if posterior.resolved:
        return of_samples(posterior.samples, truth, mask, data_range=data_range)
    return of_normal(posterior.mean, posterior.deviation, truth, mask, data_range=data_range)


def calibration_of_projections(result: Reconstruction, held_out: Measurement[Any]) -> Calibration:
    """On line integrals that no fit has seen: no reference is needed.

    They are N(mean of the samples' predictions, their variance + the noise's), with the noise that the measurement
    states or an estimate from it (`operators.noise.deviation_of`).
    """
    predicted = result.posterior_prediction(held_out)
    deviation = (predicted.deviation.square() + deviation_of(held_out).square()).sqrt()
    return of_normal(predicted.mean, deviation, held_out.values)


def judge_on_projections(uncertainty: Uncertainty, result: Reconstruction, held_out: Measurement[Any]) -> None:
    """Adds the calibration on held-out views, under 'held-out'; where they are all equal there is none."""
    try:
        uncertainty.calibrations["held-out"] = calibration_of_projections(result, held_out)
    except InputError:
        return


def said(uncertainty: Uncertainty) -> list[str]:
    """One sentence for every calibration."""
    sentences = []
    for name, found in uncertainty.calibrations.items():
        values = {"reference": "the reference's values", "held-out": "the values held out of the fit"}[name]
        levels, covered = (" / ".join(f"{100 * v:.0f}" for v in row) for row in (STATED, found.coverage))
        about = f"calibration error (ECE) {found.ece:.3f}"
        if math.isfinite(found.rank_correlation):
            about += f", rank correlation of |error| and standard deviation {found.rank_correlation:.2f}"
        count = len(uncertainty.image.samples)
        sentences.append(f"Intervals of {levels} % from {count} samples hold {covered} % of {values}; {about}.")
    return sentences


def rendered(
    result: Reconstruction,
    grid: Grid,
    what: Literal["image", "deviation", "low", "high", "samples"],
    level: float | None = None,
) -> Float[Tensor, "n0 n1 n2 *c"]:
    """What is asked of a result, on `grid`; 'samples' on the last axis.

    Args:
        level: of the interval whose ends are 'low' and 'high' (default: 0.9).

    Raises:
        InputError: the result has no posterior, or the level is not between 0 and 1.
    """
    if what == "image":
        return result.render(grid)
    own = vars(api.load(result.method)).get("deviation")
    if not result.has_posterior:
        if what == "deviation" and own is not None:
            image: Tensor = own(result, grid)
            return image
        raise InputError(
            f"this result of {result.method} is one field and has no {what}",
            fix="reconstruct with --ensemble 5, or with a method that has a posterior (uncertainr)",
        )
    posterior = result.posterior(grid)
    if what == "deviation":
        return posterior.deviation
    if what == "samples":
        return torch.movedim(posterior.samples, 0, -1)
    low, high = posterior.interval(LEVEL if level is None else level)
    return low if what == "low" else high


def write_uncertainty(folder: Path, uncertainty: Uncertainty, grid: Grid, unit: str, run: Run) -> Mapping[str, Any]:
    """Writes deviation, interval and samples as NIfTI and returns their record for run.json."""
    posterior = uncertainty.image
    low, high = posterior.interval(LEVEL)
    files = {"deviation": "deviation.nii.gz", "low": "interval-low.nii.gz", "high": "interval-high.nii.gz"}
    for name, values in (("deviation", posterior.deviation), ("low", low), ("high", high)):
        write_nifti(folder / files[name], values, grid, unit=unit)
    if posterior.samples.numel() <= LARGEST_FILE:
        files["samples"] = "samples.nii.gz"
        write_nifti(folder / files["samples"], torch.movedim(posterior.samples, 0, -1), grid, unit=unit)
    else:
        run.note("The samples were not written: `scanfield render --what samples` does, on any grid.")
    calibrations = {name: found.to_json() for name, found in uncertainty.calibrations.items()}
    return {"level": LEVEL, "count": len(posterior.samples), "files": files, "calibration": calibrations}
