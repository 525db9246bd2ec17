"""Runs what `scanfield reconstruct` was asked to with raw MR data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scanfield.cli.fit import fit, voxels
from scanfield.cli.inputs import output_grid
from scanfield.cli.kspace_inputs import read_cine, read_scan
from scanfield.cli.method_flags import How
from scanfield.cli.request import KSpaceRequest
from scanfield.data.rawmri import KSpace
from scanfield.errors import InputError
from scanfield.run import Run
from scanfield.tasks.mri import check_reference, held_out_views, reconstruct_kspace
from scanfield.tasks.outcome import Outcome


def fit_kspace(request: KSpaceRequest, config: Any, folder: Path, how: How) -> int:
    """Runs a request in a folder and returns the exit code.

    Raises:
        InputError: an input is wrong; nothing is left of a folder made for it.
    """
    if len(request.scans) > 1:
        raise InputError(f"{request.method} takes one scan, got {len(request.scans)}", where=" ".join(request.scans))
    data = read_scan(request.scans[0], request.options)
    geometry = data.acquisition
    grid = output_grid(geometry.volume, request.like, request.spacing_mm)
    frames = request.options["holdout_frames"]
    held_out_views(geometry, request.holdout_views, frames)  # refused before anything is made
    truth = None if request.reference is None else read_cine(request.reference, grid, request.options)
    if truth is not None:
        check_reference(truth, geometry.frame_count, grid)

    def prepare(run: Run) -> tuple[list[str], Callable[[], Outcome]]:
        described = f"input     {Path(request.scans[0]).name}: {_described(data)}"
        return [described], lambda: reconstruct_kspace(
            data,
            request.method,
            config,
            run,
            preset=request.preset,
            holdout_views=request.holdout_views,
            holdout_frames=frames,
            baselines=request.baselines,
            reference=truth,
            grid=grid,
            request=asdict(request),
        )

    return fit(request, prepare, folder, how)


def _described(data: KSpace) -> str:
    geometry = data.acquisition
    series = {"frame": "frames", "s": "frames", "cycle": "phases"}[geometry.when.axis.unit]
    many = f", {geometry.frame_count} {series}" if geometry.frame_count > 1 else ""
    return (
        f"{geometry.views} views of {geometry.shape[2]} samples, {geometry.coils} coils{many}, for "
        f"{voxels(geometry.volume)}"
    )
