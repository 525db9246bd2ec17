"""The library in one call: names or objects in, an outcome out. Whoever needs more calls the modules themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from scanfield.data.attenuation import CtUnit, attenuation
from scanfield.data.files import load
from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.measurement import Measurement
from scanfield.data.pair import Pair
from scanfield.data.points import Points
from scanfield.data.projections import read_facts
from scanfield.data.scan import Scan
from scanfield.data.spectra import Spectrum
from scanfield.data.tubes import spectrum_of
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import from_json
from scanfield.methods.config import preset as config_preset
from scanfield.run import Run, choose_device
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks import reconstruction, registration, segmentation, synthesis
from scanfield.tasks.model import Model
from scanfield.tasks.outcome import Outcome
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.segmentation import Segmentation
from scanfield.tasks.synthesis import Generated, GenerateOptions, Mode


def reconstruct(
    data: Measurement[ProjectionGeometry] | str | Path,
    method: str = "scope",
    *,
    preset: str = "fast",
    settings: dict[str, Any] | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    holdout_views: int | None = None,
    baselines: reconstruction.Baselines = "all",
    reference: Scan | str | Path | None = None,
    reference_unit: CtUnit = "auto",
    prior: Scan | str | Path | None = None,
    prior_unit: CtUnit = "auto",
    grid: Grid | None = None,
    ensemble: int | None = None,
    metal_mask: Scan | str | Path | None = None,
    spectrum: Spectrum | str | None = None,
) -> Outcome:
    """Reconstructs a scan: `scanfield reconstruct` as a function.

    Args:
        data: the scan, or the file it is in.
        method: one of `scanfield list`.
        preset: 'tiny' (seconds, no image worth looking at), 'fast' (minutes on a CPU), 'paper' (as published).
        settings: configuration keys that differ from the preset.
        folder: where to write everything; it must not hold a run yet. None keeps all in memory.
        seed, device: as on the command line.
        holdout_views: views kept from every row of the table to judge it (None: 5 %, at least one).
        baselines: classical rivals on the same data: 'none', 'fast' or 'all'.
        reference: the true image, for PSNR, SSIM and NRMSE.
        reference_unit: of its values, see `scanfield.data.attenuation`; HU refer to the attenuation of water that the
            scan's file states.
        prior: an earlier image of the same patient, for a method that takes one; in the scan's world.
        prior_unit: of its values, likewise.
        grid: where to render; by default as the scan asks.
        ensemble: fit so many members from as many seeds; `outcome.uncertainty` says how far they agree.
        metal_mask: image on the scan's grid, not zero in metal; adds corrections of metal to the rivals.
        spectrum: of the X-rays, where the scan does not state it: '120kVp', or a file of keV and photons.

    Raises:
        InputError: the method does not take this data or a prior, or a name, a setting or a file is wrong.
    """
    scan = data if isinstance(data, Measurement) else load(data)
    api.check_accepts(method, scan.kind)
    assert isinstance(scan, Measurement)
    if not isinstance(scan.acquisition, ProjectionGeometry):
        raise InputError("this function takes CT projections", fix="k-space: scanfield.tasks.mri.reconstruct_kspace")
    if metal_mask is not None:
        scan = replace(scan, metal=_image(metal_mask))
    if spectrum is not None:
        scan = replace(scan, spectrum=spectrum if isinstance(spectrum, Spectrum) else spectrum_of(spectrum))
    module = api.load(method)
    config = from_json(module.Config, settings or {}, base=config_preset(module.Config, preset), where="settings")
    mu_water = None if isinstance(data, Measurement) else read_facts(data).mu_water_per_mm
    images = {"reference": (reference, reference_unit), "prior": (prior, prior_unit)}
    truth, earlier = (_attenuation(what, *image, mu_water) for what, image in images.items())
    run = Run(folder=None if folder is None else Path(folder), device=choose_device(device), seed=seed)
    return reconstruction.reconstruct(
        scan,
        method,
        config,
        run,
        preset=preset,
        holdout_views=holdout_views,
        baselines=baselines,
        reference=truth,
        grid=grid,
        prior=earlier,
        ensemble=ensemble,
        scan_facts={"mu_water_per_mm": mu_water},
        request={"inputs": [str(name) for name in (data, prior) if isinstance(name, str | Path)]},
    )


def register(
    fixed: Scan | str | Path,
    moving: Scan | str | Path,
    method: str = "idir",
    *,
    preset: str = "fast",
    settings: dict[str, Any] | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    baselines: reconstruction.Baselines = "all",
    landmarks: tuple[Points, Points] | None = None,
    labels: tuple[Scan, Scan] | None = None,
) -> Outcome:
    """Finds the map from a fixed to a moving image: `scanfield register` as a function.

    `scanfield.tasks.warp.mapping(outcome.result)` is the map as a module: points (n, 3) of the fixed image in mm to
    their places in the moving image.

    Args:
        fixed, moving: images, or the files they are in; a `Scan` may have a mask.
        method: one of `scanfield list --task registration`.
        preset: 'tiny' (seconds, no map worth using), 'fast' (minutes on a CPU), 'paper' (as published).
        settings: configuration keys that differ from the preset.
        folder: where to write everything; it must not hold a run yet. None keeps all in memory.
        seed, device: as on the command line.
        baselines: classical rivals on the same pair: 'none', 'fast' or 'all'.
        landmarks: the same places of the body in both images (`data.points.read_points`); judge the map only.
        labels: segmentations of both images, likewise.

    Raises:
        InputError: the images do not make a pair, or a name, a setting or a file is wrong.
    """
    pair = Pair(_image(fixed), _image(moving))
    api.check_accepts(method, pair.kind)
    module = api.load(method)
    config = from_json(module.Config, settings or {}, base=config_preset(module.Config, preset), where="settings")
    run = Run(folder=None if folder is None else Path(folder), device=choose_device(device), seed=seed)
    return registration.register(
        pair,
        method,
        config,
        run,
        preset=preset,
        baselines=baselines,
        landmarks=landmarks,
        labels=labels,
        request={"inputs": [str(name) for name in (fixed, moving) if not isinstance(name, Scan)]},
    )


def segment(
    image: Scan | str | Path,
    model: Model | str | Path,
    *,
    folder: str | Path | None = None,
    device: str = "auto",
    grid: Grid | None = None,
    spacing_mm: float | None = None,
    reference: Scan | str | Path | None = None,
    tolerance_mm: float | None = None,
    refine: bool = False,
    largest: bool = False,
) -> Segmentation:
    """Segments an image with a trained model: `scanfield segment` as a function.

    Args:
        image: one channel, or the file it is in.
        model: what `scanfield train` wrote, or the folder or file of it.
        folder: where to write everything; it must not hold a run yet. None keeps all in memory.
        device: as on the command line.
        grid, spacing_mm: where the classes are asked for; by default the image's own voxels.
        reference: labels to judge by, with the values of the model's label table, on any grid.
        tolerance_mm: of the surface Dice; by default the reference's largest voxel size.
        refine: ask at every fourth voxel first, and then only near borders.
        largest: keep the largest part of every class alone.

    Raises:
        InputError: the model is none for segmentation or does not suit the image; the reference does not suit them;
            both a grid and a spacing are given.
    """
    if grid is not None and spacing_mm is not None:
        raise InputError("the grid follows from 'grid' or from 'spacing_mm', not from both")
    scan = _image(image)
    trained = model if isinstance(model, Model) else Model.load(model)
    run = Run(folder=None if folder is None else Path(folder), device=choose_device(device))
    return segmentation.segment(
        scan,
        trained,
        run,
        grid=grid if spacing_mm is None else scan.grid.resampled(spacing_mm),
        reference=None if reference is None else _image(reference),
        tolerance_mm=tolerance_mm,
        refine=refine,
        largest=largest,
        request={"inputs": [str(name) for name in (image, reference) if isinstance(name, str | Path)]},
    )


def generate(
    model: Model | str | Path,
    *,
    count: int = 20,
    mode: Mode = "prior",
    spread: float = 1.0,
    frames: int | None = None,
    spacing_mm: float | None = None,
    meshes: bool = True,
    folder: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Generated:
    """Draws new shapes in space and time from a trained model: `scanfield generate` as a function.

    Args:
        model: what `scanfield train` wrote, or the folder or file of it.
        count, mode, spread, frames, spacing_mm, meshes: what to generate (`tasks.synthesis.GenerateOptions`).
        folder: where to write everything; it must not hold a run yet. None keeps all in memory.
        seed, device: as on the command line.

    Raises:
        InputError: the model makes no shapes, or a setting is wrong.
    """
    options = GenerateOptions(count, mode, spread, frames, spacing_mm, meshes)
    trained = model if isinstance(model, Model) else Model.load(model)
    run = Run(folder=None if folder is None else Path(folder), device=choose_device(device), seed=seed)
    return synthesis.generate(trained, options, run, request={"inputs": []})


def _attenuation(what: str, image: Scan | str | Path | None, unit: CtUnit, mu_water: float | None) -> Scan | None:
    """A CT image in 1/mm, if there is one."""
    if image is None:
        return None
    found = load(image) if isinstance(image, str | Path) else image
    if isinstance(found, Measurement):
        raise InputError(f"a {what} is an image, this file holds projections", where=str(image))
    return attenuation(found, unit, mu_water or MU_WATER_PER_MM)


def _image(scan: Scan | str | Path) -> Scan:
    found = scan if isinstance(scan, Scan) else load(scan)
    if isinstance(found, Measurement):
        raise InputError("an image is needed here; this file holds projections", where=str(scan))
    return found


def open_result(path: str | Path, device: str = "cpu") -> Reconstruction:
    """The result in a RUN folder or a `field.safetensors` file; `.render(grid)` and `.predict(scan)` need nothing else.

    Raises:
        InputError: there is none, or it is truncated, altered or of a newer version.
    """
    path = Path(path)
    return Reconstruction.load(path / "field.safetensors" if path.is_dir() else path, choose_device(device))
