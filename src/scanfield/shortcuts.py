"""The library in one call: names or objects in, an outcome out. Whoever needs more calls the modules themselves."""

from __future__ import annotations

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
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import from_json
from scanfield.methods.config import preset as config_preset
from scanfield.run import Run, choose_device
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks import reconstruction, registration
from scanfield.tasks.outcome import Outcome
from scanfield.tasks.result import Reconstruction


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

    Raises:
        InputError: the method does not take this data or a prior, or a name, a setting or a file is wrong.
    """
    scan = data if isinstance(data, Measurement) else load(data)
    api.check_accepts(method, scan.kind)
    assert isinstance(scan, Measurement)
    if not isinstance(scan.acquisition, ProjectionGeometry):
        raise InputError("this function takes CT projections", fix="k-space: scanfield.tasks.mri.reconstruct_kspace")
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
        raise InputError("registration takes two images; this file holds projections", where=str(scan))
    return found


def open_result(path: str | Path, device: str = "cpu") -> Reconstruction:
    """The result in a RUN folder or a `field.safetensors` file; `.render(grid)` and `.predict(scan)` need nothing else.

    Raises:
        InputError: there is none, or it is truncated, altered or of a newer version.
    """
    path = Path(path)
    return Reconstruction.load(path / "field.safetensors" if path.is_dir() else path, choose_device(device))
