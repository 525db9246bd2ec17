"""From k-space to a judged series of images: held-out data, fit, rivals on the same data, numbers, files, report.

A run's folder holds, besides what every run leaves:

    METHOD.nii.gz        the magnitude, (n0, n1, n2) or with a fourth axis of time; the rivals' likewise
    kspace.npz           k-space as measured and as every row predicts it, for the report (`tasks.mri_files`)

All rows share the coil sensitivities: those of the scan, or ones estimated once from the views that are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor

from scanfield.baselines.mri import BASELINES
from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.metrics.image import compare
from scanfield.metrics.measurement import residual
from scanfield.operators.calibration import WIDTH, sensitivities_on
from scanfield.operators.encoding import KSpaceEncoding
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.space.kspace import KSpaceGeometry
from scanfield.tasks.folder import Picture, begin, facts_of
from scanfield.tasks.mri_files import write_kspace_record
from scanfield.tasks.outcome import Outcome, finish
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.series import on_grid, step_s
from scanfield.tasks.table import Column, Row, Table

HELD_OUT_SHARE = 0.05  # of the views
LEAST_VIEWS = 20  # of a scan that can spare some
MOVES = 0.1  # of the largest standard deviation over time: from there a voxel moves
STILL = 0.01  # of the reference's largest value: below it nothing moves

SECONDS = Column("seconds", "time", "s", "", "", 1)
MISSING = "Frames that no fitted view belongs to are interpolated linearly in time in the rows of frame-wise rivals."

Series = Complex[Tensor, "frames n0 n1 n2"]


@dataclass(frozen=True, eq=False)
class Rendered:
    """A row of the table: its series on the scan's own volume."""

    row: Row
    series: Series


@on_the_run_s_backend
def reconstruct_kspace(
    data: KSpace,
    method: str,
    config: Any,
    run: Run,
    *,
    preset: str = "fast",
    holdout_views: int | None = None,
    holdout_frames: int | None = None,
    baselines: Literal["none", "fast", "all"] = "all",
    reference: Tensor | None = None,
    grid: Grid | None = None,
    scan_facts: dict[str, Any] | None = None,
    request: dict[str, Any] | None = None,
) -> Outcome:
    """Reconstructs raw MR data with a method and its classical rivals, in the frames of the scan.

    Args:
        data: the scan; `KSpaceGeometry.cut` or `data.cardiac.cardiac_gated` give it other frames.
        method: name of the method; must accept k-space.
        config: its configuration.
        run: seeds, device, folder. With a folder everything is written there.
        preset: which preset `config` started from, for the record.
        holdout_views: views kept from every row of the table to judge it; by default 5 %, at least one.
        holdout_frames: keeps all views of so many frames instead, spread over the inner ones.
        baselines: which rivals to run: 'none', 'fast' (direct or few iterations) or 'all'.
        reference: the true series (frames, n0, n1, n2) on the output grid, complex or magnitude; magnitudes count.
        grid: output grid; by default the scan's volume. Rivals come to another one by their Fourier series.
        scan_facts: what else the report should say about the scan.
        request: what was asked for, kept in run.json.

    Raises:
        InputError: the method does not take k-space, the reference does not fit, or there is not as much to hold out.
    """
    api.check_accepts(method, data.kind)
    module, label = api.load(method), api.card(method).label
    volume = data.acquisition.volume
    grid = volume if grid is None else grid
    frames = data.acquisition.frame_count
    if reference is not None:
        check_reference(reference, frames, grid)
    unseen = held_out_views(data.acquisition, holdout_views, holdout_frames)
    fitted = _part(data, np.setdiff1d(np.arange(data.acquisition.views), unseen))
    given = data.sensitivities is not None
    maps = sensitivities_on(fitted, volume)
    data, fitted = replace(data, sensitivities=maps), replace(fitted, sensitivities=maps)
    held_out = _part(data, unseen) if len(unseen) else None
    about = (scan_facts or {}) | _described(data.acquisition, unseen, holdout_frames, given)
    facts = facts_of(run, method, preset, to_json(config), request or {}) | {"facts": about}
    begin(run, facts)

    with run.timed("fit"):
        result: Reconstruction = module.fit(config, fitted, run, held_out=held_out)
    result.provenance = {k: facts[k] for k in ("command", "inputs", "seed", "versions", "created")}
    moments = data.acquisition.frame_moments()
    with run.timed("render"):
        own = module.series(result, volume, moments)
        shown = own if grid.same_as(volume) else module.series(result, grid, moments)
    seconds = {"seconds": run.timings["fit"] + run.timings["render"]}
    rows, step = [Rendered(Row(method, label, "method", seconds), own)], step_s(result.spec, frames)
    pictures = [_picture(rows[0].row, shown, step)]
    for name, baseline in BASELINES.items():
        if run.stop.is_set() or baselines == "none" or (baselines == "fast" and not baseline.fast):
            continue
        if name == "temporal-tv" and frames == 1:
            continue
        run.tell({"baseline": baseline.label})
        try:
            with run.timed(name):
                there = replace(fitted, values=fitted.values.to(run.device))
                images = baseline.reconstruct(there, volume).cpu()
        except InputError as error:  # a rival that cannot take this scan must not cost the user the method's result
            run.note(f"{baseline.label} is missing from the table: {error.what}.")
            continue
        images = _filled(images, fitted.acquisition, run)
        rows.append(Rendered(Row(name, baseline.label, "baseline", {"seconds": run.timings[name]}), images))
        pictures.append(_picture(rows[-1].row, on_grid(images, volume, grid), step))
    table = Table([SECONDS], [rendered.row for rendered in rows])
    if held_out is not None:
        _score_residuals(table, rows, module.predict(result, held_out), held_out, volume, holdout_frames)
    if reference is not None:
        _score_images(table, pictures, reference)
        pictures.append(Picture("reference", "reference", "reference", _stacked(reference.abs()), "", step))
    outcome = Outcome(result, grid, pictures, table, run.folder)
    if run.folder is not None:
        predicted = {rendered.row.name: _encoded(rendered.series, data, volume) for rendered in rows}
        write_kspace_record(
            run.folder, data, predicted | {f"{method} (own)": module.predict(result, data)}, unseen, step
        )
        finish(run, facts, outcome, window=(0.0, _bright(pictures[-1].values)))
    return outcome


def held_out_views(geometry: KSpaceGeometry, views: int | None, frames: int | None) -> Int[np.ndarray, " n"]:
    """The views that judge: all of some inner frames, or `views` (by default 5 %) spread over the scan.

    A line of a Cartesian scan judges only if it lies outside the frequencies that show the coils: without the centre
    of k-space there is no image.

    Raises:
        InputError: both are asked for, or more than there are.
    """
    if frames is not None:
        if views is not None:
            raise InputError("views or whole frames are held out, not both", fix="--holdout-views or --holdout-frames")
        if not 0 < frames <= max(0, (geometry.frame_count - 1) // 2):
            raise InputError(
                f"{frames} frames cannot be held out of {geometry.frame_count}: less than half of them, at least one"
            )
        chosen = np.round((np.arange(frames) + 0.5) * geometry.frame_count / frames - 0.5).astype(int)
        return np.flatnonzero(np.isin(geometry.frame_of_view, np.clip(chosen, 1, geometry.frame_count - 2)))
    if views is None:
        views = max(1, round(HELD_OUT_SHARE * geometry.views)) if geometry.views >= LEAST_VIEWS else 0
    extent = np.asarray(geometry.volume.shape) * np.asarray(geometry.volume.spacing_mm)
    nearest = np.abs(geometry.trajectory * extent).max(axis=2).min(axis=1)
    outside = np.flatnonzero(nearest > WIDTH / 2)
    candidates = outside if len(outside) else np.arange(geometry.views)
    if not 0 <= views < len(candidates):
        raise InputError(
            f"cannot hold out {views} of {len(candidates)} views",
            fix=f"choose --holdout-views between 0 and {len(candidates) - 1}",
        )
    place = np.round((np.arange(views) + 0.5) * len(candidates) / max(views, 1) - 0.5).astype(int)
    return np.unique(candidates[place])


def check_reference(reference: Tensor, frames: int, grid: Grid) -> None:
    """Raises `InputError` if a series has not the frames and voxels of the reconstruction."""
    if tuple(reference.shape) != (frames, *grid.shape):
        raise InputError(
            f"the reference has {reference.shape[0]} frames of {'x'.join(map(str, reference.shape[1:]))} voxels, the "
            f"reconstruction {frames} of {'x'.join(map(str, grid.shape))}",
            where="reference",
            fix="give the true series in the frames and on the grid of the reconstruction",
        )


def _part(data: KSpace, views: np.ndarray) -> KSpace:
    out = data.subset(views)
    assert isinstance(out, KSpace)
    return out


def _filled(images: Series, geometry: KSpaceGeometry, run: Run) -> Series:
    """Frames without a view, interpolated between those around them; a cycle goes round."""
    seen = np.bincount(geometry.frame_of_view, minlength=len(images)) > 0
    if seen.all():
        return images
    run.note(MISSING)
    at, out = np.flatnonzero(seen), images.clone()
    period = len(images) if geometry.when.periodic else None
    for frame in np.flatnonzero(~seen):
        before, after = at[at < frame], at[at > frame]
        if period is None and not (len(before) and len(after)):
            out[frame] = images[before[-1] if len(before) else after[0]]
            continue
        a, b = (before[-1] if len(before) else at[-1] - len(images)), (after[0] if len(after) else at[0] + len(images))
        share = (frame - a) / (b - a)
        out[frame] = (1 - share) * images[a % len(images)] + share * images[b % len(images)]
    return out


def _encoded(images: Series, data: KSpace, volume: Grid) -> Complex[Tensor, "views coils samples"]:
    return KSpaceEncoding(data.acquisition, volume, data.sensitivities).apply(images)


def _score_residuals(
    table: Table, rows: Sequence[Rendered], own: Tensor, held_out: KSpace, volume: Grid, frames: int | None
) -> None:
    """Every series is encoded by the same operator; the method is also asked for its own k-space."""
    unseen = f"{held_out.acquisition.views} views" if frames is None else f"the views of {frames} whole frames"
    note = f"RMS of predicted minus measured k-space on {unseen} that no row has seen, relative to the RMS measured"
    table.columns = [
        Column("held_out", "held-out residual", "%", "lower", f"{note}; from the images, through coils and trajectory"),
        Column("held_out_field", "held-out field", "%", "", "the same, from the method's own prediction of k-space"),
        *table.columns,
    ]
    for rendered in rows:
        predicted = _encoded(rendered.series, held_out, volume)
        rendered.row.values["held_out"] = 100 * residual(predicted, held_out.values).relative_rms
    rows[0].row.values["held_out_field"] = 100 * residual(own, held_out.values).relative_rms


def _score_images(table: Table, pictures: Sequence[Picture], reference: Tensor) -> None:
    """PSNR, SSIM and NRMSE of all frames together, and of the voxels that change."""
    truth = _stacked(reference.abs().float())
    flat, peak = _in_plane(truth), float(truth.max())
    moving = None
    if truth.ndim == 4:
        deviation = truth.std(dim=-1)
        if float(deviation.max()) > STILL * peak:
            moving = _in_plane((deviation > MOVES * deviation.max())[..., None].expand(truth.shape))
    about = f"magnitudes of all frames together, data range {peak:.4g} (the reference's largest value)"
    table.add_column(Column("psnr_db:reference", "PSNR vs reference", "dB", "higher", about))
    table.add_column(Column("ssim:reference", "SSIM vs reference", "", "higher", "", 3))
    table.add_column(Column("nrmse:reference", "NRMSE vs reference", "", "lower", "", 3))
    if moving is not None:
        note = "the same where the reference changes: a standard deviation over time above a tenth of the largest"
        table.add_column(Column("psnr_moving_db", "PSNR moving", "dB", "higher", note))
    for row, picture in zip(table.rows, pictures, strict=True):
        values = _in_plane(picture.values)
        numbers = compare(values, flat, None, peak)
        row.values |= {
            "psnr_db:reference": numbers.psnr_db,
            "ssim:reference": numbers.ssim,
            "nrmse:reference": numbers.nrmse,
        }
        if moving is not None:
            row.values["psnr_moving_db"] = compare(values, flat, moving, peak).psnr_db


def _picture(row: Row, images: Tensor, step: float | None) -> Picture:
    return Picture(row.name, row.label, row.kind, _stacked(images.abs().float()), "", step)


def _stacked(images: Tensor) -> Float[Tensor, "n0 n1 n2 *t"]:
    """Frames last, as NIfTI has them; a single one without an axis."""
    return images[0] if len(images) == 1 else images.movedim(0, -1).contiguous()


def _in_plane(values: Tensor) -> Shaped[Tensor, "n0 n1 m"]:
    """Slices and frames one behind the other, for measures that work in a slice's plane."""
    return values.reshape(*values.shape[:2], math.prod(values.shape[2:]))


def _bright(values: Tensor) -> float:
    """The top of the grey scale."""
    shown = values.flatten()
    return float(shown[:: max(1, shown.numel() // 100_000)].quantile(0.998)) or 1.0


def _described(geometry: KSpaceGeometry, unseen: np.ndarray, frames: int | None, given: bool) -> dict[str, str]:
    axis = geometry.when.axis
    lasting = {
        "s": f"{axis.high - axis.low:.4g} s",
        "cycle": f"phases of a cycle of {geometry.when.cycle_s or 0:.4g} s on average",
        "frame": "without times",
    }[axis.unit]
    found = {
        "K-space": f"{geometry.views} views of {geometry.shape[2]} samples, {geometry.coils} coils",
        "Series": "one image" if geometry.frame_count == 1 else f"{geometry.frame_count} frames, {lasting}",
        "Coil sensitivities": "from the scan's file"
        if given
        else "estimated from the fitted views, for all rows alike",
        "Held out of the fit": "nothing",
    }
    if len(unseen):
        whole = "" if frames is None else f" (all of {frames} frames)"
        found["Held out of the fit"] = f"{len(unseen)} views{whole}"
    return found
