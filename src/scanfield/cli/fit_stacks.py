"""Runs what `scanfield reconstruct` was asked to with stacks of slices."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scanfield.cli.fit import fit, voxels
from scanfield.cli.inputs import read_image
from scanfield.cli.method_flags import How
from scanfield.cli.request import StackRequest
from scanfield.cli.stack_inputs import read_stacks
from scanfield.data.slices import SliceSet, slice_set
from scanfield.data.stacks import Stack
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.run import Run
from scanfield.tasks.outcome import Outcome
from scanfield.tasks.stacks import held_out_slices, reconstruct_stacks


def fit_stacks(request: StackRequest, config: Any, folder: Path, how: How) -> int:
    """Runs a request in a folder and returns the exit code.

    Raises:
        InputError: an input is wrong; nothing is left of a folder made for it.
    """
    api.check_accepts(request.method, SliceSet.kind)
    if request.like is not None and request.full_field_of_view:
        raise InputError("the grid follows from --like or from --full-field-of-view, not from both")
    stacks = stacks_of(request)
    held_out_slices(slice_set(stacks), request.holdout_slices, request.holdout_stack)  # refused before anything is made
    grid = None if request.like is None else read_image(request.like).grid

    def prepare(run: Run) -> tuple[list[str], Callable[[], Outcome]]:
        described = [f"stack {k}   {_described(stack)}" for k, stack in enumerate(stacks)]
        return described, lambda: reconstruct_stacks(
            stacks,
            request.method,
            config,
            run,
            preset=request.preset,
            registration=request.registration,
            holdout_slices=request.holdout_slices,
            holdout_stack=request.holdout_stack,
            baselines=request.baselines,
            grid=grid,
            spacing_mm=request.spacing_mm,
            full_field_of_view=request.full_field_of_view,
            request=asdict(request),
        )

    return fit(request, prepare, folder, how)


def stacks_of(request: StackRequest) -> list[Stack]:
    """The stacks a request names, with their masks."""
    return read_stacks(request.stacks, argparse.Namespace(**request.options))


def _described(stack: Stack) -> str:
    mask = "" if stack.scan.mask is None else f", {int(stack.scan.mask.sum())} of them in its mask"
    return (
        f"{Path(stack.scan.source).name}: {voxels(stack.scan.grid)}{mask}; slices {stack.thickness_mm:g} mm thick, "
        f"{stack.gap_mm:.3g} mm between them"
    )
