"""From stacks of slices to a judged volume: registration of stacks, fit, rivals, numbers, files, report.

A run's folder holds, besides what every run leaves (poses and frames: `data.stacks`, `data.slices`):

    METHOD.nii.gz        the volume; mean.nii.gz, classical.nii.gz those of the rivals
    mask.nii.gz          where there are slices
    deviation.nii.gz     the standard deviation that the method gives to the volume
    slices.json          every slice: stack, number, pose (4x4, world mm), the pose it began with, weight, scale, NCC
    slices/              every slice as it was measured, at its pose (in the header's affine)
    slices.npz           some slices as measured and as predicted before and after, for the report

A row of the table is judged on slices that neither it nor any other row was fitted to. Their pose is not known: each is
registered to the row's volume, by the same procedure, from where its stack is; then it is compared with what the volume
shows there, after one intensity scale per slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.baselines.slice_registration import predicted_pixels, register_slices
from scanfield.baselines.stacks import BASELINES
from scanfield.data.slices import SliceSet, slice_set
from scanfield.data.stacks import Stack
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.metrics.stacks import slice_agreement
from scanfield.operators.slices import SliceState, box_grid
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.tasks.folder import Picture, begin, facts_of
from scanfield.tasks.outcome import Outcome, finish
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.stack_files import write_slices, write_volumes
from scanfield.tasks.stack_registration import register_stacks
from scanfield.tasks.table import Column, Row, Table

HELD_OUT_SHARE = 0.05  # of the slices
LEAST_SLICES = 8  # of a stack that can spare one
RIM = 0.5  # of the largest slice's pixels: smaller ones judge little
MARGIN_MM = 5.0  # of the volume around the slices
JUDGE_STEPS = 60  # of the registration of a held-out slice

UNSEEN = "on slices no row has seen, each registered to the row's own volume by the same procedure"
HELD_OUT = (
    Column("held_out_ncc", "held-out NCC", "", "higher", f"mean over slices of the correlation, {UNSEEN}", 4),
    Column(
        "held_out_rmse",
        "held-out residual",
        "%",
        "lower",
        f"root mean square in percent of the stacks' 99th percentile, {UNSEEN}, after one scale per slice",
    ),
)
SECONDS = Column("seconds", "time", "s", "", "", 1)


@dataclass(frozen=True, eq=False)
class Rendered:
    """A row: its volume in 99th percentiles of the stacks, and what it found out about the slices."""

    volume: Float[Tensor, "n0 n1 n2"]
    state: SliceState


@on_the_run_s_backend
def reconstruct_stacks(
    stacks: Sequence[Stack],
    method: str,
    config: Any,
    run: Run,
    *,
    preset: str = "fast",
    registration: Literal["none", "stack"] = "stack",
    holdout_slices: int | None = None,
    holdout_stack: int | None = None,
    baselines: Literal["none", "fast", "all"] = "all",
    grid: Grid | None = None,
    spacing_mm: float | None = None,
    full_field_of_view: bool = False,
    scan_facts: dict[str, Any] | None = None,
    request: dict[str, Any] | None = None,
) -> Outcome:
    """Reconstructs a volume from stacks of slices with a method and its classical rivals.

    Args:
        stacks: checked ones (`data.stacks.check_stacks`).
        method: name of the method; must accept stacks.
        config: its configuration.
        run: seeds, device, folder. With a folder everything is written there.
        preset: which preset `config` started from, for the record.
        registration: 'stack' first registers the stacks to each other, 'none' trusts their headers.
        holdout_slices: slices kept from every row of the table to judge it; by default 5 %, from the inner slices of
            every stack that can spare some.
        holdout_stack: keeps this whole stack (from 0) instead.
        baselines: which rivals to run: 'none', 'fast' (seconds) or 'all'.
        grid: output grid; by default cubic voxels along the axes of the world around the slices.
        spacing_mm: of those voxels; by default the smallest in-plane spacing.
        full_field_of_view: around the whole stacks, not only their masks.
        scan_facts: what else the report should say about the stacks.
        request: what was asked for, kept in run.json.

    Raises:
        InputError: the method does not take stacks, or what is to be held out does not exist.
    """
    api.check_accepts(method, SliceSet.kind)
    module, label = api.load(method), api.card(method).label
    slices = slice_set(stacks)
    unseen = held_out_slices(slices, holdout_slices, holdout_stack)
    facts = facts_of(run, method, preset, to_json(config), request or {})
    begin(run, facts)
    about, transforms = dict(scan_facts or {}), torch.eye(4, dtype=torch.float64).expand(len(stacks), 4, 4)
    if registration == "stack" and len(stacks) > 1:
        alignment = register_stacks(stacks, run)
        slices, transforms = alignment.applied(slices), alignment.transforms
        before, after = (float(np.nanmean(values)) for values in (alignment.ncc_before, alignment.ncc_after))
        about["stack registration"] = f"NCC between stacks {before:.3f} before, {after:.3f} after"
    fitted, held_out = slices.subset(~unseen), slices.subset(unseen) if bool(unseen.any()) else None
    facts |= {"facts": about | _described(slices, unseen)}
    if grid is None:
        grid = output_grid(stacks, fitted, spacing_mm, full_field_of_view)

    with run.timed("fit"):
        result: Reconstruction = module.fit(config, fitted, run, held_out=held_out)
    result.provenance = {k: facts[k] for k in ("command", "inputs", "seed", "versions", "created")}
    result.provenance["stack_transforms"] = transforms.tolist()
    scale = result.spec.scale
    with run.timed("render"):
        image = module.render(result, grid)
    table = Table([*HELD_OUT, SECONDS] if held_out is not None else [SECONDS])
    rows = {method: Rendered(image / scale, module.slices(result))}
    table.rows.append(Row(method, label, "method", {"seconds": run.timings["fit"] + run.timings["render"]}))
    pictures = [Picture(method, label, "method", image)]
    for name, baseline in BASELINES.items():
        if run.stop.is_set() or baselines == "none" or (baselines == "fast" and not baseline.fast):
            continue
        run.tell({"baseline": baseline.label})
        try:
            with run.timed(name):
                rows[name] = Rendered(*baseline.reconstruct(fitted, grid, run))
        except InputError as error:  # a rival that cannot take these stacks must not cost the user the result
            run.note(f"{baseline.label} is missing from the table: {error.what}.")
            continue
        pictures.append(Picture(name, baseline.label, "baseline", scale * rows[name].volume))
        table.rows.append(Row(name, baseline.label, "baseline", {"seconds": run.timings[name]}))
    if held_out is not None:
        run.tell({"baseline": "held-out slices"})
        for row in table.rows:
            row.values |= judged(rows[row.name].volume, grid, held_out, run)
    _warn(run, rows[method].state, fitted)
    outcome = Outcome(result, grid, pictures, table, run.folder)
    if run.folder is not None:
        write_volumes(run.folder, module, result, grid)
        write_slices(
            run.folder, rows[method].state, fitted, module.predict(result, fitted), _before(rows, grid, fitted)
        )
        finish(run, facts | {"slices": "slices.json"}, outcome)
    return outcome


def held_out_slices(slices: SliceSet, count: int | None = None, stack: int | None = None) -> Bool[Tensor, " n"]:
    """Which slices judge: a whole stack, or `count` (by default 5 %) of the inner slices, evenly spread.

    Raises:
        InputError: there is no such stack, it is the only one, or there are not as many inner slices.
    """
    chosen = torch.zeros(slices.count, dtype=torch.bool)
    if stack is not None:
        if count is not None:
            raise InputError(
                "slices or a whole stack are held out, not both", fix="--holdout-slices or --holdout-stack"
            )
        if not 0 <= stack < slices.stacks or slices.stacks < 2:
            raise InputError(
                f"stack {stack} cannot be held out: there are stacks 0 to {slices.stacks - 1}, and one must be left"
            )
        return slices.stack_index == stack
    pixels = torch.bincount(slices.slice_index, minlength=slices.count)
    inner = []
    for index in range(slices.stacks):
        mine = (slices.stack_index == index).nonzero()[:, 0]
        if len(mine) >= LEAST_SLICES:
            large = mine[pixels[mine] >= RIM * pixels[mine].max()]
            inner += large[1:-1].tolist()
    wanted = round(HELD_OUT_SHARE * slices.count) if count is None else count
    if count is not None and count > len(inner) // 2:
        raise InputError(f"{count} slices cannot be held out of {len(inner)} inner ones", fix="hold out at most half")
    wanted = min(wanted, len(inner) // 2)
    if wanted:
        place = ((torch.arange(wanted) + 0.5) * len(inner) / wanted).long()
        chosen[torch.tensor(inner)[place]] = True
    return chosen


def output_grid(stacks: Sequence[Stack], slices: SliceSet, spacing_mm: float | None, full: bool) -> Grid:
    """Cubic voxels along the axes of the world around the slices' pixels, or around the whole stacks."""
    spacing = float(slices.spacing_mm.min()) if spacing_mm is None else spacing_mm
    if full:
        corners = np.concatenate([stack.scan.grid.corners_mm() for stack in stacks])
        return box_grid(torch.from_numpy(corners), spacing, 0.0)
    return box_grid(slices.world(), spacing, MARGIN_MM)


def judged(volume: Float[Tensor, "n0 n1 n2"], grid: Grid, unseen: SliceSet, run: Run) -> dict[str, float]:
    """A row's numbers on slices that it has not seen (see the module)."""
    poses = register_slices(volume, grid, unseen, run, steps=JUDGE_STEPS, name="held-out slices")
    with torch.no_grad():
        seen = predicted_pixels(volume, grid, unseen, poses())
    of, y = unseen.slice_index, unseen.pixels
    zero = torch.zeros(unseen.count)
    below = zero.index_add(0, of, seen.square()).clamp(min=1e-12)
    fitted = (zero.index_add(0, of, seen * y) / below)[of] * seen
    ncc = slice_agreement(y, seen, of, unseen.count).ncc
    return {
        "held_out_ncc": float(ncc[~ncc.isnan()].mean()) if not bool(ncc.isnan().all()) else 0.0,
        "held_out_rmse": 100 * float((fitted - y).square().mean().sqrt()),
    }


def _before(rows: dict[str, Rendered], grid: Grid, slices: SliceSet) -> Float[Tensor, " m"]:
    """The slices as the reconstructed volume predicts them where they were at first."""
    volume = next(iter(rows.values())).volume
    return predicted_pixels(volume, grid, slices, slices.initial[:, :3].float())


def _described(slices: SliceSet, unseen: Bool[Tensor, " n"]) -> dict[str, str]:
    per_stack = torch.bincount(slices.stack_index, minlength=slices.stacks).tolist()
    found = {
        "Stacks": f"{slices.stacks}, with {' + '.join(map(str, per_stack))} slices and {len(slices.pixels)} pixels"
    }
    names = [f"{slices.stack_index[k]}:{slices.number[k]}" for k in unseen.nonzero()[:, 0].tolist()]
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return found | {"Held-out slices (stack:slice, from 0)": shown or "none"}


def _warn(run: Run, state: SliceState, slices: SliceSet) -> None:
    """What a reader should not have to find in slices.json."""
    shift = (state.poses[:, :3, 3] - slices.initial[:, :3, 3].cpu()).norm(dim=-1)
    reach = float(slices.local_mm.norm(dim=-1).max())
    far = int((shift > reach).sum())
    if far:
        run.warn(f"{far} of {slices.count} slices were moved by more than the body's radius: look at the pose plot")
    ignored = int((state.soundness() < 0.2).sum())
    if ignored:
        run.note(f"{ignored} of {slices.count} slices have a soundness below 0.2: they are outliers (slices.json).")
