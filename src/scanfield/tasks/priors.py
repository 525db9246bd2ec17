"""A prior image brought to a CT scan: its place, its unit, and whether it can be the same object at all.

Notation: A line integrals through the scan's volume, y those measured, p the prior (1/mm) on the scan's grid.

    factor k = <A p, y> / <A p, A p>       1 if both have one unit and one energy; 0.1 for a prior in 1/cm
    misfit   = ||A p - y|| / ||y||         what the prior leaves unexplained of the measurement

What the prior does not cover counts as air.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.metrics.change import changed_voxels, recovered
from scanfield.metrics.image import psnr_db
from scanfield.operators.resample import covered, resample
from scanfield.operators.voxel import VoxelProjector
from scanfield.run import Run
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.folder import Picture
from scanfield.tasks.table import Column, Table

LEAST_COVERED = 0.5  # of the scan's voxels
LARGEST_FACTOR, NOTED_FACTOR = 2.0, 1.15  # between the attenuation of prior and scan, either way
LARGEST_MISFIT = 0.15  # an earlier state of one body leaves a few percent, another body 20 to 50


def placed_prior(prior: Scan, data: Measurement[ProjectionGeometry], run: Run) -> Scan:
    """The prior on the grid of the scan's volume, with a mask of the voxels it covers unless it covers all.

    What a reader of the result should know about it (resampled, partly covered, how well it explains the scan) becomes
    a note or a warning of the run.

    Args:
        prior: attenuation in 1/mm (`data.attenuation`), anywhere in the scan's world.

    Raises:
        InputError: it covers less than half of the volume, is empty there, or attenuates more than twice or less than
            half as much as the scan says.
    """
    grid = data.acquisition.volume
    inside = covered(prior.grid, grid)
    share = float(inside.float().mean())
    if share < LEAST_COVERED:
        raise InputError(
            f"the prior covers only {100 * share:.0f} % of the scan's volume",
            where=prior.source,
            fix="register the prior to this scan first; both carry their position in the affine",
        )
    if share < 1:
        run.warn(f"The prior covers {100 * share:.1f} % of the scan's volume; the rest starts without one.")
    if prior.grid.same_as(grid):
        values = prior.values.float()
    else:
        values = resample(prior.values, prior.grid, grid)
        run.note("The prior lies on another grid than the scan's volume and was resampled onto it.")
    placed = replace(prior, values=values, grid=grid, mask=None if share == 1 else inside)
    factor, misfit = agreement(placed, data, run.device)
    _judge(factor, misfit, prior.source, run)
    return placed


def agreement(prior: Scan, data: Measurement[ProjectionGeometry], device: torch.device | str) -> tuple[float, float]:
    """Factor and misfit of the module's docstring for a prior on the grid of the scan's volume.

    Raises:
        InputError: no ray meets any attenuation of the prior.
    """
    projector = VoxelProjector(data.acquisition, prior.grid, device=device)
    predicted, measured = projector.apply(prior.values.to(device)).cpu().double(), data.values.cpu().double()
    power = float(predicted.square().sum())
    if power == 0:
        raise InputError("the prior is empty where the scan looks", where=prior.source)
    factor = float((predicted * measured).sum()) / power
    return factor, _norm(predicted - measured) / max(_norm(measured), 1e-30)


def _judge(factor: float, misfit: float, source: str, run: Run) -> None:
    more = 1 / factor if factor > 0 else torch.inf
    if not 1 / LARGEST_FACTOR <= more <= LARGEST_FACTOR:
        raise InputError(
            f"the prior attenuates {more:.3g} times as much as the scan: it has another unit, or shows something else",
            where=source,
            fix="give the prior in HU or in 1/mm (1/cm divided by 10), and the scan as line integrals",
        )
    if not 1 / NOTED_FACTOR <= more <= NOTED_FACTOR:
        run.warn(
            f"The prior attenuates {more:.2f} times as much as the scan: another energy, another attenuation of water "
            "behind its HU, another patient, or a part of the body that it does not cover."
        )
    if misfit > LARGEST_MISFIT:
        run.warn(
            f"The prior leaves {100 * misfit:.0f} % of the measured line integrals unexplained (norm): it may be out "
            "of place, or of another patient. Compare with a fit without it."
        )
    else:
        run.note(f"The prior alone leaves {100 * misfit:.1f} % of the measured line integrals unexplained (norm).")


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values))


def score_change(
    table: Table, pictures: Sequence[Picture], prior: Tensor, reference: Tensor, mask: Bool[Tensor, "n0 n1 n2"]
) -> None:
    """Adds two columns to the table: the error where the object changed, and how much of the change every row shows.

    Args:
        pictures: at first those of the table's rows, in their order, (n0, n1, n2) each like `prior` and `reference`.
        mask: where images are judged.
    """
    if not bool((mask & (prior != reference)).any()):
        return
    changed = changed_voxels(prior, reference, mask)
    data_range = float(reference[mask].max() - reference[mask].min())
    about = f"in the {int(changed.sum())} voxels that hold 90 % of the squared change since the prior"
    table.add_column(
        Column("psnr_db_changed:reference", "PSNR where changed vs reference", "dB", "higher", f"{about}, same range")
    )
    meaning = f"{about}: 0 % is the prior, 100 % all of the change; noise does not lower it"
    table.add_column(Column("recovered:reference", "change shown vs reference", "%", "", meaning, 0))
    for row, picture in zip(table.rows, pictures, strict=False):
        row.values["psnr_db_changed:reference"] = psnr_db(picture.values, reference, changed, data_range)
        row.values["recovered:reference"] = 100 * recovered(picture.values, prior, reference, changed)
