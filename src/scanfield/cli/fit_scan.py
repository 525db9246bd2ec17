"""Runs what `scanfield reconstruct` was asked to: one scan, projections or an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from scanfield.cli.fit import fit, voxels
from scanfield.cli.inputs import output_grid, read_image, read_input
from scanfield.cli.method_flags import How
from scanfield.cli.request import ScanRequest
from scanfield.cli.xray_inputs import with_xrays
from scanfield.data.attenuation import attenuation, ct_unit
from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.measurement import Measurement
from scanfield.data.projections import read_facts
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.image_fit import fit_image
from scanfield.tasks.outcome import Outcome
from scanfield.tasks.reconstruction import reconstruct


def fit_scan(request: ScanRequest, config: Any, folder: Path, how: How) -> int:
    """Runs a request in a folder and returns the exit code.

    Raises:
        InputError: an input is wrong; nothing is left of a folder made for it.
    """
    scans = [name for name in request.inputs if name not in (request.prior, request.metal_mask, request.spectrum)]
    if len(scans) != 1:
        raise InputError(f"{request.method} takes one scan, got {len(scans)}", where=" ".join(scans))
    data = read_input(request.inputs[0])
    api.check_accepts(request.method, data.kind)
    _check_options(request, data)
    grid = output_grid(_own_grid(data), request.like, request.spacing_mm)

    def prepare(run: Run) -> tuple[list[str], Callable[[], Outcome]]:
        truth = None if request.reference is None else _image(request, data, run, "reference")
        prior = None if request.prior is None else _image(request, data, run, "prior")
        described = f"input     {Path(request.inputs[0]).name}: {_described(data)}"
        return [described], lambda: _outcome(request, data, config, run, truth, prior, grid)

    return fit(request, prepare, folder, how)


def _outcome(
    request: ScanRequest,
    data: Scan | Measurement[ProjectionGeometry],
    config: Any,
    run: Run,
    truth: Scan | None,
    prior: Scan | None,
    grid: Grid,
) -> Outcome:
    if isinstance(data, Measurement):
        return reconstruct(
            with_xrays(data, request.metal_mask, request.spectrum),
            request.method,
            config,
            run,
            preset=request.preset,
            holdout_views=request.holdout_views,
            baselines=request.baselines,
            reference=truth,
            grid=grid,
            prior=prior,
            ensemble=request.ensemble,
            scan_facts={"mu_water_per_mm": read_facts(request.inputs[0]).mu_water_per_mm},
            request=asdict(request),
        )
    return fit_image(
        data,
        request.method,
        config,
        run,
        preset=request.preset,
        holdout_fraction=request.holdout_fraction,
        baselines=request.baselines,
        reference=truth,
        grid=grid,
        ensemble=request.ensemble,
        request=asdict(request),
    )


def _own_grid(data: Scan | Measurement[ProjectionGeometry]) -> Grid:
    return data.acquisition.volume if isinstance(data, Measurement) else data.grid


def _check_options(request: ScanRequest, data: Scan | Measurement[ProjectionGeometry]) -> None:
    """Options that belong to the other kind of data are refused, not ignored."""
    if isinstance(data, Measurement) and request.holdout_fraction is not None:
        raise InputError("projections are held out by views, not by voxels", fix="--holdout-views N")
    if isinstance(data, Scan) and request.holdout_views is not None:
        raise InputError("an image has no views to hold out", fix="--holdout-fraction F")
    if isinstance(data, Scan) and request.prior is not None:
        raise InputError("a prior image goes with CT projections, not with an image", fix="leave --prior out")
    if isinstance(data, Scan) and (request.metal_mask is not None or request.spectrum is not None):
        raise InputError("a metal mask and a spectrum go with CT projections, not with an image", fix="leave them out")
    if isinstance(data, Scan) and request.reference_unit != "auto":
        raise InputError("--reference-unit is for CT projections; an image's reference has the image's unit")


def _image(
    request: ScanRequest,
    data: Scan | Measurement[ProjectionGeometry],
    run: Run,
    what: Literal["reference", "prior"],
) -> Scan:
    """The reference or the prior; for CT in 1/mm, its HU read with the attenuation of water the scan was made with."""
    name, unit = (
        (request.reference, request.reference_unit) if what == "reference" else (request.prior, request.prior_unit)
    )
    assert name is not None
    image = read_image(name)
    if isinstance(data, Scan):
        return image
    mu_water = read_facts(request.inputs[0]).mu_water_per_mm
    if mu_water is None and ct_unit(image, unit) == "HU":
        mu_water = MU_WATER_PER_MM
        run.warn(f"the scan does not state the attenuation of water; the {what}'s HU refer to {mu_water:g} 1/mm")
    return attenuation(image, unit, mu_water or MU_WATER_PER_MM)


def _described(data: Scan | Measurement[ProjectionGeometry]) -> str:
    if isinstance(data, Scan):
        return f"image of {voxels(data.grid)}"
    size = " x ".join(map(str, data.acquisition.volume.shape))
    geometry = data.acquisition
    rows, bins = geometry.detector.shape
    return f"{geometry.beam} beam, {geometry.views} views of {rows} x {bins} bins, for {size} voxels"
