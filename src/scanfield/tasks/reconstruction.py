"""From projections to a judged image: fit, render, rivals on the same data, numbers, files, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from scanfield.baselines.ct import BASELINES, for_metal, with_prior
from scanfield.data.attenuation import attenuation
from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.metrics.image import compare
from scanfield.metrics.measurement import residual
from scanfield.operators.fbp import filtered_backprojection
from scanfield.operators.fov import field_of_view
from scanfield.operators.resample import covered, resample
from scanfield.operators.siddon import project_voxels
from scanfield.operators.views import dense_geometry
from scanfield.operators.voxel import VoxelProjector
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.folder import Picture, begin, facts_of
from scanfield.tasks.metal import outside, prepared, write_metal
from scanfield.tasks.outcome import Outcome, finish
from scanfield.tasks.priors import placed_prior, score_change
from scanfield.tasks.result import Reconstruction, render_field
from scanfield.tasks.table import Column, Row, Table
from scanfield.tasks.uncertainty import calibration, fit_result, judge_on_projections, uncertainty_of

Baselines = Literal["none", "fast", "all"]
DENSE_VIEWS = 720  # of the dense-view FBP reference
RANKING = (
    "The ranking depends on the reference. The dense-view FBP is what the same scanner would show with many noise-free "
    "views: it shares its last step, and its blur, with every row that ends in an FBP. The reference image is the "
    "object itself. Both are given; neither alone is the truth about a method."
)

HELD_OUT = Column(
    key="held_out",
    label="held-out residual",
    unit="1",
    better="lower",
    digits=4,
    note="RMS of predicted minus measured line integrals on views no row has seen; contains the scan's own noise",
)
SECONDS = Column(key="seconds", label="time", unit="s", better="", digits=1)


@on_the_run_s_backend
def reconstruct(
    data: Measurement[ProjectionGeometry],
    method: str,
    config: Any,
    run: Run,
    *,
    preset: str = "fast",
    holdout_views: int | None = None,
    baselines: Baselines = "all",
    reference: Scan | None = None,
    grid: Grid | None = None,
    prior: Scan | None = None,
    ensemble: int | None = None,
    scan_facts: dict[str, Any] | None = None,
    request: dict[str, Any] | None = None,
) -> Outcome:
    """Reconstructs projections with a method and its classical rivals.

    Args:
        data: the scan.
        method: name of the method; must accept `data.kind`.
        config: its configuration.
        run: seeds, device, folder. With a folder everything is written there (see `tasks.folder`).
        preset: which preset `config` started from, for the record.
        holdout_views: views kept from every row of the table to judge it; by default 5 % of them, at least one.
        baselines: which rivals to run: 'none', 'fast' (seconds) or 'all'.
        reference: the true image, in HU or 1/mm (see `data.attenuation`), resampled where it lies on another grid.
        grid: output grid; by default the scan's own.
        ensemble: fit so many members from as many seeds; the result is the set of them (`Reconstruction.ensemble`).
        prior: an earlier image of the object, in HU or 1/mm likewise, for a method that takes one (see `tasks.priors`).
        scan_facts: what else is known about the scan, for the report; `mu_water_per_mm` adds HU to its captions.
        request: what was asked for, kept in run.json.

    Raises:
        InputError: the method does not take this data, or the reference does not overlap with the scan.
    """
    api.check_accepts(method, data.kind)
    module = api.load(method)
    if prior is not None:
        api.check_takes_prior(method)
        prior = attenuation(prior)
    grid = data.acquisition.volume if grid is None else grid
    views = data.acquisition.views
    if holdout_views is None:
        holdout_views = round(max(1, views / 20)) if views >= 10 else 0
    fitted, held_out = data.hold_out(holdout_views)
    fitted = prepared(module, config, fitted, run)
    data = replace(data, metal=fitted.metal)
    truth = None if reference is None else attenuation(reference)
    placed = None if truth is None else _placed(truth, grid, run)
    placed_before = None if prior is None else placed_prior(prior, data, run)
    facts = facts_of(run, method, preset, to_json(config), request or {}) | {"facts": scan_facts or {}}
    begin(run, facts)

    with run.timed("fit"):
        result = fit_result(
            lambda one: module.fit(config, fitted, one, held_out=held_out, prior=placed_before), run, ensemble
        )
    result.provenance = {k: facts[k] for k in ("command", "inputs", "seed", "versions", "created")}
    pictures, table = [], Table([HELD_OUT, SECONDS] if held_out else [SECONDS])
    label = api.card(method).label
    with run.timed("render"):
        uncertainty = uncertainty_of(result, grid)
        image = result.render(grid) if uncertainty is None else uncertainty.image.mean
    pictures.append(Picture(method, label, "method", image))
    table.rows.append(Row(method, label, "method", {"seconds": run.timings["fit"] + run.timings["render"]}))
    if module.render is not render_field:
        name = f"{method}-field"
        pictures.append(Picture(name, f"{label} field", "read-out", render_field(result, grid)))
        table.rows.append(Row(name, f"{label} field", "read-out", {"seconds": run.timings["fit"]}))
    if prior is not None:
        pictures.append(Picture("prior", "prior image", "baseline", _on(grid, prior)))
        table.rows.append(Row("prior", "prior image", "baseline", {}))
        facts["prior"] = "prior"
    for name, baseline in ((BASELINES if prior is None else with_prior(prior)) | for_metal(fitted)).items():
        if run.stop.is_set() or baselines == "none" or (baselines == "fast" and not baseline.fast):
            continue
        if data.acquisition.beam not in baseline.beams:
            continue
        run.tell({"baseline": baseline.label})
        try:
            with run.timed(name):
                values = baseline.reconstruct(fitted, grid)
        except InputError as error:  # a rival that cannot take this scan must not cost the user the method's result
            run.note(f"{baseline.label} is missing from the table: {error.what}.")
            continue
        pictures.append(Picture(name, baseline.label, "baseline", values))
        table.rows.append(Row(name, baseline.label, "baseline", {"seconds": run.timings[name]}))

    if held_out is not None:
        _score_residuals(table, pictures, result, module, held_out, grid)
        if uncertainty is not None:
            judge_on_projections(uncertainty, result, held_out)
    if truth is not None and placed is not None:
        pictures += _score_images(table, pictures, truth, placed, data, grid, run)
        if prior is not None:
            score_change(table, pictures, _on(grid, prior), placed, field_of_view(data.acquisition, grid))
        if uncertainty is not None:
            mask = field_of_view(data.acquisition, grid) & covered(truth.grid, grid)
            uncertainty.calibrations["reference"] = calibration(uncertainty.image, placed, mask)
    outcome = Outcome(result, grid, pictures, table, run.folder, uncertainty)
    if run.folder is not None:
        _write(run, facts, outcome, data, data.held_out_views(holdout_views))
    return outcome


def _placed(truth: Scan, grid: Grid, run: Run) -> Tensor:
    """The reference on the output grid; says so when it had to be resampled.

    Raises:
        InputError: less than half of the grid lies inside the reference.
    """
    if truth.grid.same_as(grid):
        return truth.values
    share = float(covered(truth.grid, grid).float().mean())
    if share < 0.5:
        raise InputError(
            f"the reference covers only {100 * share:.0f} % of the reconstruction's grid",
            where=truth.source,
            fix="give the reference of this very scan; both carry their position in the affine",
        )
    run.note(
        f"The reference lies on another grid ({_size(truth.grid)}) and was resampled onto the output's ({_size(grid)})."
    )
    return resample(truth.values, truth.grid, grid)


def _on(grid: Grid, image: Scan) -> Tensor:
    """An image on the output grid, as it is where it has that grid already."""
    return image.values if image.grid.same_as(grid) else resample(image.values, image.grid, grid)


def _size(grid: Grid) -> str:
    return f"{'x'.join(map(str, grid.shape))} at {'x'.join(f'{s:.3g}' for s in grid.spacing_mm)} mm"


def _score_residuals(
    table: Table,
    pictures: Sequence[Picture],
    result: Reconstruction,
    module: Any,
    held_out: Measurement[ProjectionGeometry],
    grid: Grid,
) -> None:
    """Every image is projected by the same voxel projector; a field is also asked for its own line integrals."""
    projector = VoxelProjector(held_out.acquisition, grid)
    for row, picture in zip(table.rows, pictures, strict=True):
        own = row.kind == "read-out" or (row.kind == "method" and module.render is render_field)
        predicted = result.predict(held_out) if own else projector.apply(picture.values)
        row.values[HELD_OUT.key] = residual(predicted, held_out.values).rms


def _score_images(
    table: Table,
    pictures: Sequence[Picture],
    truth: Scan,
    placed: Tensor,
    data: Measurement[ProjectionGeometry],
    grid: Grid,
    run: Run,
) -> list[Picture]:
    """PSNR, SSIM, NRMSE against the reference and against the FBP of a dense, noise-free scan of it."""
    mask = field_of_view(data.acquisition, grid) & covered(truth.grid, grid) & outside(data.metal, grid)
    region = "inside the field of view" + (" and outside metal" if data.metal is not None else "")
    references = [Picture("reference", "reference", "reference", placed)]
    try:
        references.append(_dense_fbp(truth, data.acquisition, grid))
        run.note(RANKING)
    except InputError as error:
        run.note(f"There is no dense-view FBP to compare with: {error.what}.")
    for target in references:
        first = compare(placed, target.values, mask)
        about = f"{region} ({first.mask_voxels} voxels), data range {first.data_range:.4g} 1/mm"
        table.add_column(Column(f"psnr_db:{target.name}", f"PSNR vs {target.label}", "dB", "higher", about))
        table.add_column(Column(f"ssim:{target.name}", f"SSIM vs {target.label}", "", "higher", "", 3))
        table.add_column(Column(f"nrmse:{target.name}", f"NRMSE vs {target.label}", "", "lower", "", 3))
        for row, picture in zip(table.rows, pictures, strict=True):
            numbers = compare(picture.values, target.values, mask)
            row.values |= {
                f"psnr_db:{target.name}": numbers.psnr_db,
                f"ssim:{target.name}": numbers.ssim,
                f"nrmse:{target.name}": numbers.nrmse,
            }
    return references


def _dense_fbp(truth: Scan, acquisition: ProjectionGeometry, grid: Grid) -> Picture:
    """FBP of a dense, noise-free scan of the reference by the same scanner.

    Raises:
        InputError: a cone beam, or a scan whose views cannot be made denser.
    """
    if acquisition.beam == "cone":
        raise InputError("a cone beam off its middle plane is not reconstructed exactly by any number of views")
    dense = dense_geometry(acquisition, max(1, round(DENSE_VIEWS / acquisition.views)))
    sinogram = project_voxels(truth.values, truth.grid, dense)
    return Picture(
        "dense-fbp",
        f"{dense.views}-view FBP",
        "reference",
        filtered_backprojection(sinogram, dense, grid),
        "which shares its last step with every FBP-based row",
    )


def _write(
    run: Run,
    facts: dict[str, Any],
    outcome: Outcome,
    data: Measurement[ProjectionGeometry],
    held_views: np.ndarray,
) -> None:
    assert run.folder is not None
    write_metal(run.folder, outcome.result, data.metal, outcome.pictures[0], outcome.grid)
    predicted = outcome.result.predict(data)
    with write_atomically(run.folder / "measurements.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, measured=data.values.numpy(), predicted=predicted.numpy(), angles_deg=data.acquisition.angles_deg
        )
    measurements = {"file": "measurements.npz", "held_out_views": held_views.tolist(), "unit": data.unit}
    finish(run, facts, outcome, measurements=measurements | _column_mm(data), window=_soft_tissue(outcome.pictures))


def _column_mm(data: Measurement[ProjectionGeometry]) -> dict[str, float]:
    detector = data.acquisition.detector
    return {"column_spacing_mm": detector.spacing[1]} if detector.kind == "flat" else {}


def _soft_tissue(pictures: Sequence[Picture]) -> tuple[float, float] | None:
    """A window in which soft tissue shows its contrast, where the images show water-like tissue at all."""
    shown = next((p for p in pictures if p.kind == "reference"), pictures[0]).values
    low, high = 0.75 * MU_WATER_PER_MM, 1.3 * MU_WATER_PER_MM
    return (low, high) if float(((shown > low) & (shown < high)).float().mean()) > 0.1 else None
