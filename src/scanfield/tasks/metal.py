"""Metal in a reconstruction: what the method and its rivals know of it, where numbers count, and what is kept of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from scanfield.data.hounsfield import MU_WATER_PER_MM
from scanfield.data.measurement import Measurement
from scanfield.data.nifti import write_nifti
from scanfield.data.scan import Scan
from scanfield.data.write import write_atomically
from scanfield.methods import api
from scanfield.operators.metal import metal_mask
from scanfield.operators.resample import resample
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.folder import Picture
from scanfield.tasks.result import Reconstruction

CURVES, MASK = "energies.json", "metal.nii.gz"
CLEAR_VOXELS = 3  # between metal and what is shown as tissue
RESIDUALS = (
    "The scan is polychromatic: the rivals' images are projected as if it had one energy, so their held-out residuals "
    "contain the hardening of the beam."
)


def prepared(
    module: Any, config: Any, data: Measurement[ProjectionGeometry], run: Run
) -> Measurement[ProjectionGeometry]:
    """The scan with what the method wants known about it (the module's own `prepare`), its metal mask checked.

    Raises:
        InputError: the mask does not fit the scan (`operators.metal.metal_mask`).
    """
    if data.metal is not None:
        data = replace(data, metal=metal_mask(data.metal, data))
    if data.spectrum is not None:
        run.note(RESIDUALS)
    prepare = vars(module).get("prepare")
    if prepare is not None:
        data = prepare(config, data, run)
    return data


def outside(metal: Scan | None, grid: Grid) -> Bool[Tensor, "n0 n1 n2"]:
    """The voxels of a grid without metal; where numbers count."""
    if metal is None:
        return torch.ones(grid.shape, dtype=torch.bool)
    return ~_on(metal, grid)


def write_metal(folder: Path, result: Reconstruction, metal: Scan | None, picture: Picture, grid: Grid) -> None:
    """Writes the mask on the output grid and, where the method has them, attenuation against energy at three points."""
    if metal is not None:
        write_nifti(folder / MASK, _on(metal, grid).float(), grid, unit="1")
    energy_curves = vars(api.load(result.method)).get("energy_curves")
    if energy_curves is None:
        return
    places = _places(picture.values, outside(metal, grid))
    points = grid.to_world(torch.tensor([place for _, place in places]).double()).float()
    energies, values = energy_curves(next(result.samples()), points)
    if len(energies) < 2:
        return
    facts = {
        "energies_kev": energies.tolist(),
        "reference_kev": float(result.spec.facts["reference_kev"]),
        "points": [
            {"label": label, "mm": point.tolist(), "per_mm": curve.tolist()}
            for (label, _), point, curve in zip(places, points, values, strict=True)
        ],
    }
    with write_atomically(folder / CURVES) as temporary:
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _on(metal: Scan, grid: Grid) -> Bool[Tensor, "n0 n1 n2"]:
    if metal.grid.same_as(grid):
        return metal.values != 0
    return resample((metal.values != 0).float(), metal.grid, grid) >= 0.5


def _places(image: Tensor, free: Bool[Tensor, "n0 n1 n2"]) -> list[tuple[str, tuple[int, ...]]]:
    """Voxels to show: the deepest in metal, the most attenuating and the most water-like well outside of it."""
    from scipy.ndimage import distance_transform_edt

    values, clear = image.numpy(), free.numpy()
    metal = ~clear
    found = []
    if metal.any():
        flat = np.squeeze(metal)
        found.append(("metal", distance_transform_edt(flat).reshape(metal.shape)))
        clear = (distance_transform_edt(~flat) > CLEAR_VOXELS).reshape(metal.shape)
    if clear.any():
        found.append(("most attenuating tissue", np.where(clear, values, -np.inf)))
        found.append(("most water-like tissue", np.where(clear, -np.abs(values - MU_WATER_PER_MM), -np.inf)))
    return [(label, tuple(int(k) for k in np.unravel_index(score.argmax(), score.shape))) for label, score in found]
