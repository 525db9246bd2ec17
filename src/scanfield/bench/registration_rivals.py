"""elastix and ANTs on a pair, where they are installed: what registration methods are held against in the bench.

Both are programs of their own with files of their own: they run in a temporary folder, and what they found is read back
as a displacement on the fixed grid.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.data.displacement import read_displacement, write_itk_displacement
from scanfield.data.itk import LPS, itk_image, itk_mask
from scanfield.data.pair import Pair
from scanfield.errors import MissingExtra
from scanfield.fields.motion import LatticeDisplacement
from scanfield.run import Run
from scanfield.space.grid import Grid

EXTRA = "rivals"
SPACING_MM, LEVELS = 12.0, 4  # of elastix's B-spline
RADIUS = 2  # voxels: half the window of ANTs' correlation
ITERATIONS = (100, 70, 20, 0)  # of ANTs, coarse to fine: the full resolution takes many minutes on two cores


def elastix(pair: Pair, run: Run) -> LatticeDisplacement:
    """elastix with its B-spline parameters: 12 mm, 4 levels, NCC and bending energy (weight 1).

    Raises:
        MissingExtra: itk-elastix or SimpleITK is not installed.
    """
    itk = _imported("itk", "itk-elastix")
    fixed, moving = (_to_itk(itk, itk_image(scan)) for scan in (pair.fixed, pair.moving))
    settings = itk.ParameterObject.New()
    settings.AddParameterMap(settings.GetDefaultParameterMap("bspline", LEVELS, SPACING_MM))
    settings.SetParameter(0, "Metric", ["AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"])
    settings.SetParameter(0, "Metric0Weight", "1")
    settings.SetParameter(0, "Metric1Weight", "1")
    settings.SetParameter(0, "RandomSeed", str(run.seed + 1))
    options: dict[str, Any] = {"parameter_object": settings, "log_to_console": False}
    if pair.fixed.mask is not None:
        options["fixed_mask"] = _to_itk(itk, itk_mask(pair.fixed))
    _, found = itk.elastix_registration_method(fixed, moving, **options)
    with tempfile.TemporaryDirectory() as folder:
        warp = itk.TransformixFilter.New(moving)
        warp.SetTransformParameterObject(found)
        warp.ComputeDeformationFieldOn()
        warp.SetOutputDirectory(folder)
        warp.Update()
        field = itk.array_from_image(warp.GetOutputDeformationField())
    values = field.transpose(2, 1, 0, 3) * LPS
    return LatticeDisplacement(torch.tensor(values, dtype=torch.float32), pair.fixed.grid)


def ants(pair: Pair, run: Run) -> LatticeDisplacement:
    """ANTs' symmetric normalisation (SyN) with local correlation, after a rigid and an affine stage.

    Raises:
        MissingExtra: antspyx or SimpleITK is not installed.
    """
    ants = _imported("ants", "antspyx")
    fixed, moving = (_to_ants(ants, itk_image(scan)) for scan in (pair.fixed, pair.moving))
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            fixed,
            moving,
            type_of_transform="SyN",
            syn_metric="CC",
            syn_sampling=RADIUS,
            reg_iterations=ITERATIONS,
            mask=None if pair.fixed.mask is None else _to_ants(ants, itk_mask(pair.fixed)),
            outprefix=f"{folder}/",
            random_seed=run.seed + 1,
        )
        whole = ants.apply_transforms(fixed, moving, transformlist=found["fwdtransforms"], compose=f"{folder}/whole")
        values, grid = read_displacement(whole)
    assert grid.same_as(pair.fixed.grid)
    return LatticeDisplacement(values, pair.fixed.grid)


RIVALS: dict[str, Callable[[Pair, Run], nn.Module]] = {"elastix": elastix, "ANTs": ants}


def mapped_by_ants(phi: nn.Module, grid: Grid, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Where ANTs takes points of the fixed image with our ITK displacement file of `phi` on `grid`, in mm RAS.

    Raises:
        MissingExtra: antspyx is not installed.
    """
    ants, pandas = _imported("ants", "antspyx"), _imported("pandas", "antspyx")
    with torch.no_grad():
        values = torch.cat([phi(part) - part for part in grid.points().split(2**16)]).reshape(*grid.shape, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "displacement.nii.gz"
        write_itk_displacement(path, values, grid)
        table = pandas.DataFrame(x.double().numpy() * LPS, columns=["x", "y", "z"])
        found = ants.apply_transforms_to_points(3, table, [str(path)])
    return torch.tensor(found[["x", "y", "z"]].to_numpy() * LPS)


def _imported(module: str, package: str) -> Any:
    try:
        importlib.import_module("SimpleITK")
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(package, EXTRA, "a rival of registration methods") from None


def _to_itk(itk: Any, image: Any) -> Any:
    """An image of SimpleITK in ITK."""
    out = itk.image_from_array(importlib.import_module("SimpleITK").GetArrayFromImage(image))
    out.SetOrigin(image.GetOrigin())
    out.SetSpacing(image.GetSpacing())
    out.SetDirection(itk.matrix_from_array(np.array(image.GetDirection()).reshape(3, 3)))
    return out


def _to_ants(ants: Any, image: Any) -> Any:
    """An image of SimpleITK in ANTs, whose arrays count x first."""
    values = importlib.import_module("SimpleITK").GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return ants.from_numpy(values, origin=image.GetOrigin(), spacing=image.GetSpacing(), direction=direction)
