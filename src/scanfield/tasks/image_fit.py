"""From an image to a judged field: fit, render, rivals on the same voxels, numbers, files, report.

A method for images also defines `supervision(config)`: 'values', 'gradient' or 'laplacian' of the image, or the
'surface' of a mask. It decides what can be held out and who the rivals are:

    values      5 % of the voxels are kept from every row of the table; interpolation along grid lines
    gradient, laplacian   the image itself is never seen; Poisson equation
    surface     marching cubes of the mask is the reference; the mask's distance transform and a smoothed mask

A method with surface supervision defines `surface_mesh(result) -> Mesh`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scanfield.baselines.lines import fill_missing
from scanfield.baselines.poisson import from_gradient, from_laplacian
from scanfield.data.meshes import write_mesh
from scanfield.data.scan import Scan
from scanfield.errors import InputError, ScanfieldError
from scanfield.fields.shape import mask_mesh, object_mask, signed_distance, volume_mesh
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.metrics.image import compare, psnr_db, rmse
from scanfield.metrics.surface import surface_distance
from scanfield.operators.differences import discrete_laplacian, sobel_gradient
from scanfield.operators.resample import covered, resample
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.space.mesh import Mesh
from scanfield.tasks.folder import Picture, begin, facts_of
from scanfield.tasks.outcome import Outcome, finish
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.table import Column, Kind, Row, Table
from scanfield.tasks.uncertainty import calibration, fit_result, uncertainty_of

HELD_OUT_FRACTION = 0.05
SECONDS = Column(key="seconds", label="time", unit="s", better="", digits=1)


@on_the_run_s_backend
def fit_image(
    data: Scan,
    method: str,
    config: Any,
    run: Run,
    *,
    preset: str = "fast",
    holdout_fraction: float | None = None,
    baselines: Literal["none", "fast", "all"] = "all",
    reference: Scan | None = None,
    grid: Grid | None = None,
    prior: Any = None,
    ensemble: int | None = None,
    request: dict[str, Any] | None = None,
) -> Outcome:
    """Fits a field to an image, to its derivatives, or to the surface of a mask.

    Args:
        data: the image; of one channel.
        method: name of the method; must accept images.
        config: its configuration.
        run: seeds, device, folder. With a folder everything is written there (see `tasks.folder`).
        preset: which preset `config` started from, for the record.
        holdout_fraction: share of the voxels kept from the fit and from the rivals; by default 5 % where values are
            fitted. Only for values.
        baselines: whether to run the rivals; all of them take seconds.
        reference: a better image of the same object in the same unit (for instance without noise), to judge against.
        grid: output grid; by default the image's own. Numbers always refer to the image's own voxels.
        ensemble: fit so many members from as many seeds; the result is the set of them. Not for surfaces.
        request: what was asked for, kept in run.json.

    Raises:
        InputError: the method does not take images, this image cannot be fitted so, or the reference lies elsewhere.
    """
    api.check_accepts(method, data.kind)
    module = api.load(method)
    supervision = module.supervision(config)
    if data.values.ndim != 3:
        raise InputError("an image of one channel is expected", where=data.source, fix="extract one channel")
    if supervision != "values" and holdout_fraction:
        raise InputError(
            f"voxels can only be held out where values are fitted, not the {supervision}", fix="leave out the hold-out"
        )
    if supervision == "surface" and ensemble is not None:
        raise InputError("surfaces have no mean: there is no ensemble of them", fix="leave out --ensemble")
    if supervision == "surface" and reference is not None:
        raise InputError("a surface is judged against the mask itself", fix="leave out the reference")
    share = HELD_OUT_FRACTION if holdout_fraction is None and supervision == "values" else holdout_fraction or 0.0
    fitted, held_out = hold_out(data, share, run.generator("held-out voxels"))
    grid = data.grid if grid is None else grid
    facts = facts_of(run, method, preset, to_json(config), request or {})
    begin(run, facts)

    with run.timed("fit"):
        result = fit_result(lambda one: module.fit(config, fitted, one, held_out=held_out, prior=prior), run, ensemble)
    result.provenance = {k: facts[k] for k in ("command", "inputs", "seed", "versions", "created")}
    rivals = baselines != "none" and not run.stop.is_set()
    label = api.card(method).label
    if supervision == "surface":
        return _surface_outcome(result, module, data, grid, run, facts, label, rivals)

    own, uncertainty = {method: result.predict(data)}, uncertainty_of(result, grid)
    kinds: dict[str, tuple[str, Kind]] = {method: (label, "method")}
    if rivals:
        for name, text in _rivals(supervision).items():
            run.tell({"baseline": text})
            with run.timed(name):
                own[name] = _rival(name, fitted, data)
            kinds[name] = (text, "baseline")
    table = _image_table(own, kinds, fitted, held_out, data, run)
    pictures = []
    for name, values in own.items():
        if not grid.same_as(data.grid):
            values = result.render(grid) if name == method else resample(values, data.grid, grid)
        pictures.append(Picture(name, *kinds[name], values))
    shown = data.values.float() if grid.same_as(data.grid) else resample(data.values.float(), data.grid, grid)
    pictures.append(Picture("image", "image", "reference", shown))
    if reference is not None:
        _score_reference(table, own, reference, data, run)
    if uncertainty is not None and held_out is not None and held_out.mask is not None:
        found = calibration(result.posterior_prediction(data), data.values.float(), held_out.mask)
        uncertainty.calibrations["held-out"] = found
    outcome = Outcome(result, grid, pictures, table, run.folder, uncertainty)
    if run.folder is not None:
        for note in _image_notes(supervision):
            run.note(note)
        finish(run, facts, outcome)
    return outcome


def hold_out(data: Scan, fraction: float, generator: torch.Generator) -> tuple[Scan, Scan | None]:
    """(the image with a mask of the voxels to fit, the same with a random share of them held out, or None for 0).

    Raises:
        InputError: the fraction is not in [0, 1), or leaves no voxel on one of the sides.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"the fraction of voxels to hold out must be in [0, 1), got {fraction}")
    if fraction == 0:
        return data, None
    inside = torch.ones(data.grid.shape, dtype=torch.bool) if data.mask is None else data.mask
    drawn = inside & (torch.rand(data.grid.shape, generator=generator) < fraction)
    if not drawn.any() or not (inside & ~drawn).any():
        raise InputError(f"holding out {fraction:g} of {int(inside.sum())} voxels leaves none on one side")
    return replace(data, mask=inside & ~drawn), replace(data, mask=drawn)


# Images -------------------------------------------------------------------------------------------------------------


def _rivals(supervision: str) -> dict[str, str]:
    if supervision == "values":
        return {"linear": "linear interpolation", "cubic": "cubic interpolation"}
    return {f"poisson-{supervision}": f"Poisson equation from the {supervision}"}


def _rival(name: str, fitted: Scan, data: Scan) -> Tensor:
    values = data.values.float()
    if name == "poisson-gradient":
        image = from_gradient(sobel_gradient(values, data.grid), data.grid)
        return image - image.mean() + values.mean()
    if name == "poisson-laplacian":
        image = from_laplacian(discrete_laplacian(values, data.grid), data.grid)
        return image - image.mean() + values.mean()
    known = torch.ones(data.grid.shape, dtype=torch.bool) if fitted.mask is None else fitted.mask
    return fill_missing(values, known, data.grid, kind="linear" if name == "linear" else "cubic")


def _image_table(
    images: dict[str, Tensor],
    kinds: dict[str, tuple[str, Kind]],
    fitted: Scan,
    held_out: Scan | None,
    data: Scan,
    run: Run,
) -> Table:
    truth = data.values.float()
    peak = float(truth.max() - truth.min())
    about = f"data range {peak:.4g} {data.unit}"
    where = "all voxels" if fitted.mask is None else f"{int(fitted.mask.sum())} voxels of the fit"
    table = Table([Column("psnr_db:fitted", "PSNR, fitted", "dB", "higher", f"{where}, {about}")])
    table.add_column(Column("ssim:image", "SSIM", "", "higher", "all voxels", 3))
    if held_out is not None and held_out.mask is not None:
        note = f"{int(held_out.mask.sum())} voxels no row has seen, {about}"
        table.add_column(Column("psnr_db:held-out", "PSNR, held out", "dB", "higher", note))
        table.add_column(Column("rmse:held-out", "RMSE, held out", data.unit, "lower", "", 3))
    table.add_column(SECONDS)
    for name, image in images.items():
        label, kind = kinds[name]
        seconds = run.timings["fit"] if kind == "method" else run.timings[name]
        values = {"seconds": seconds}
        if kind == "method" or held_out is None:  # interpolation keeps the voxels it was given
            values["ssim:image"] = compare(image, truth, None, peak).ssim
            values["psnr_db:fitted"] = psnr_db(image, truth, fitted.mask, peak)
        if held_out is not None:
            values["psnr_db:held-out"] = psnr_db(image, truth, held_out.mask, peak)
            values["rmse:held-out"] = rmse(image, truth, held_out.mask)
        table.rows.append(Row(name, label, kind, values))
    return table


def _score_reference(table: Table, images: dict[str, Tensor], reference: Scan, data: Scan, run: Run) -> None:
    values, mask = reference.values.float(), None
    if not reference.grid.same_as(data.grid):
        mask = covered(reference.grid, data.grid)
        if not mask.any():
            raise InputError("the reference and the image do not overlap", where=reference.source)
        values = resample(values, reference.grid, data.grid)
        run.warn("the reference lies on another grid and was resampled onto the image's")
    peak = compare(values, values, mask).data_range
    table.add_column(
        Column("psnr_db:reference", "PSNR vs reference", "dB", "higher", f"data range {peak:.4g} {data.unit}")
    )
    for row in table.rows:
        row.values["psnr_db:reference"] = psnr_db(images[row.name], values, mask, peak)


def _image_notes(supervision: str) -> list[str]:
    if supervision == "values":
        return []
    notes = [f"Only the {supervision} was fitted. The constant it leaves open was set by the image's mean."]
    if supervision == "laplacian":
        notes.append("A Laplacian also leaves every harmonic function open: slow shading may be wrong.")
    return notes


# Surfaces -----------------------------------------------------------------------------------------------------------


def _surface_outcome(
    result: Reconstruction,
    module: Any,
    data: Scan,
    grid: Grid,
    run: Run,
    facts: dict[str, Any],
    label: str,
    rivals: bool,
) -> Outcome:
    mask = object_mask(data)
    reference = mask_mesh(mask, data.grid)
    surfaces: list[_Surface] = []
    with run.timed("render"):
        try:
            surfaces.append(_Surface(result.method, label, "method", module.surface_mesh(result)))
        except ScanfieldError as error:
            run.warn(str(error))
        pictures = [Picture(result.method, f"{label}, signed distance", "method", module.render(result, grid))]
    if rivals:
        with run.timed("distance-transform"):
            distance = signed_distance(mask, data.grid)
            mesh = _closed_mesh(distance, data.grid)
        surfaces.append(_Surface("distance-transform", "distance transform", "baseline", mesh))
        if grid.same_as(data.grid):
            pictures.append(Picture("distance-transform", "distance transform", "baseline", distance))
        with run.timed("smoothed-mask"):
            sigma = min(data.grid.spacing_mm) / np.asarray(data.grid.spacing_mm)
            soft = torch.from_numpy(0.5 - gaussian_filter(mask.numpy().astype(np.float32), sigma))
            survives = float(soft.min()) < 0
            if survives:
                mesh = _closed_mesh(soft, data.grid)
        if survives:
            surfaces.append(_Surface("smoothed-mask", "smoothed mask", "baseline", mesh))
    table = _surface_table(surfaces, reference, run)
    outcome = Outcome(result, grid, pictures, table, run.folder)
    if run.folder is not None:
        for surface in [*surfaces, _Surface("mask", "mask", "baseline", reference)]:
            stem = "surface" if surface.kind == "method" else f"surface-{surface.name}"
            write_mesh(run.folder / f"{stem}.ply", surface.mesh)
            write_mesh(run.folder / f"{stem}.surf.gii", surface.mesh)
        run.note("Signed distances are negative inside. The surfaces are in *.ply and *.surf.gii (mm, RAS+).")
        finish(run, facts, outcome)
    return outcome


@dataclass(frozen=True, eq=False)
class _Surface:
    name: str
    label: str
    kind: Kind
    mesh: Mesh


def _closed_mesh(values: Tensor, grid: Grid) -> Mesh:
    """The zero level of an image that is continued as outside, so that the surface closes at the image's border."""
    outside = float(values.abs().max()) or 1.0
    padded = torch.nn.functional.pad(values, (1, 1) * 3, value=outside)
    affine = grid.affine.copy()
    affine[:3, 3] -= grid.affine[:3, :3] @ np.ones(3)
    n0, n1, n2 = padded.shape
    return volume_mesh(padded, Grid((n0, n1, n2), affine))


def _surface_table(surfaces: list[_Surface], reference: Mesh, run: Run) -> Table:
    table = Table()
    for surface in surfaces:
        mesh = surface.mesh
        distance = surface_distance(mesh, reference, run.generator("surface samples"))
        ours = surface.kind == "method"
        seconds = run.timings["fit"] + run.timings["render"] if ours else run.timings[surface.name]
        change = 100 * (mesh.volume_mm3 / reference.volume_mm3 - 1)
        table.rows.append(
            Row(
                surface.name,
                surface.label,
                surface.kind,
                {
                    "chamfer_mm": distance.chamfer_mm,
                    "hausdorff95_mm": distance.hausdorff95_mm,
                    "volume_percent": change,
                    "components": mesh.components,
                    "euler": mesh.euler_number,
                    "closed": float(mesh.closed),
                    "seconds": seconds,
                },
            )
        )
        floor = distance.floor_mm
    about = "against marching cubes of the mask, itself a staircase of half a voxel"
    note = f"{about}; sampling floor {floor:.3g} mm" if surfaces else about
    shape = f"the mask has {reference.components} components, Euler number {reference.euler_number}"
    table.columns = [
        Column("chamfer_mm", "chamfer", "mm", "lower", note, 3),
        Column("hausdorff95_mm", "Hausdorff 95 %", "mm", "lower", "", 3),
        Column("volume_percent", "volume change", "%", "", f"of {reference.volume_mm3:.4g} mm^3"),
        Column("components", "components", "", "", shape, 0),
        Column("euler", "Euler number", "", "", "", 0),
        Column("closed", "watertight", "", "", "1: every edge joins two faces", 0),
        SECONDS,
    ]
    return table
