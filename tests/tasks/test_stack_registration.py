"""Stacks that were moved come back, whatever moved them, with masks and without."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.data.slices import slice_set
from scanfield.data.stack_masks import with_stack_mask
from scanfield.data.stacks import Stack, check_stacks, read_stack
from scanfield.errors import InputError
from scanfield.metrics.poses import pose_errors
from scanfield.operators.simulate_stacks import StackScanOptions, about, simulate_stacks
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.stack_registration import register_stacks


@pytest.fixture(scope="module")
def body():
    """An ellipsoid with blobs in it: no symmetry, structures of several millimetres."""
    grid = Grid.centred((44, 52, 40), 1.5)
    x = grid.points()
    draws = torch.Generator().manual_seed(1)
    inside = ((x / torch.tensor([24.0, 30.0, 21.0])) ** 2).sum(-1) < 1
    values = torch.full((len(x),), 40.0)
    for _ in range(40):
        centre = (torch.rand(3, generator=draws) - 0.5) * torch.tensor([40.0, 52.0, 34.0])
        width = 3 + 4 * torch.rand((), generator=draws)
        values += 60 * torch.exp(-((x - centre) ** 2).sum(-1) / (2 * width**2))
    shape = grid.shape
    return Scan((values * inside).reshape(shape), grid, mask=inside.reshape(shape), source="body")


OPTIONS = StackScanOptions(thickness_mm=3.0, in_plane_mm=1.5, margin_mm=6.0, noise_percent=2.0, seed=5)


def moved(stack, middle, rotation, shift):
    matrix = about(middle, torch.tensor([*rotation, *shift], dtype=torch.float64))
    return replace(stack, scan=replace(stack.scan, grid=stack.scan.grid.moved(matrix)))


@pytest.mark.parametrize("masks", [True, False])
def test_large_motion_between_stacks_is_undone(body, masks):
    stacks = [s.stack for s in simulate_stacks(body, OPTIONS)]
    truth = slice_set(stacks).initial
    c = body.grid.centre_mm
    stacks[1] = moved(stacks[1], c, [0.4, -0.3, 0.2], [12.0, -10, 8])
    stacks[2] = moved(stacks[2], c, [-0.2, 0.3, -0.3], [-8.0, 10, 6])
    slices = slice_set(stacks)
    if not masks:
        stacks = [replace(stack, scan=replace(stack.scan, mask=None)) for stack in stacks]
    run = Run()
    found = register_stacks(stacks, run, passes=False)
    assert torch.allclose(slices.moved(found.transforms).initial, found.applied(slices).initial)
    before, after = pose_errors(slices.initial, truth), pose_errors(found.applied(slices).initial, truth)
    assert before.summary()["displacement_mm"] > 8
    assert after.summary()["rotation_deg"] < 0.5 and after.summary()["displacement_mm"] < 0.4
    assert min(found.ncc_after) > 0.9 > min(found.ncc_before)
    assert torch.equal(found.transforms[found.reference], torch.eye(4, dtype=torch.float64))
    assert run.timings["stack registration"] > 0


def test_stacks_in_place_stay(body):
    stacks = [s.stack for s in simulate_stacks(body, OPTIONS)][:2]
    found = register_stacks(stacks, Run(), reference=1)
    assert found.reference == 1
    errors = pose_errors(found.applied(slice_set(stacks)).initial, slice_set(stacks).initial)
    assert errors.summary()["displacement_mm"] < 0.3


def test_passes_follow_the_motion_within_a_stack(body):
    """The body moves slowly, each stack is taken in three passes: it lies elsewhere in each of them."""
    options = replace(
        OPTIONS, interleave=3, in_plane_mm=2.0, motion_deg=8.0, motion_mm=4.0, correlation_shots=10.0, seed=2
    )
    simulated = simulate_stacks(body, options)
    stacks = [s.stack for s in simulated]
    slices = slice_set(stacks)
    poses = [simulated[s].poses[k] for s, k in zip(slices.stack_index, slices.number, strict=True)]
    truth = torch.from_numpy(np.stack(poses))
    header, stack, passes = (
        pose_errors(initial, truth).summary()["displacement_mm"]
        for initial in (
            slices.initial,
            register_stacks(stacks, Run(), passes=False).applied(slices).initial,
            register_stacks(stacks, Run()).applied(slices).initial,
        )
    )
    assert stack < header and passes < 0.8 * stack


def test_the_same_seed_gives_the_same_transforms(body):
    options = replace(OPTIONS, orientations=("axial", "coronal"), in_plane_mm=3.0, thickness_mm=6.0)
    stacks = [s.stack for s in simulate_stacks(body, options)]
    a, b = (register_stacks(stacks, Run(seed=3)).transforms for _ in range(2))
    assert torch.equal(a, b)


def test_what_is_refused(body):
    grid = Grid.centred((6, 6, 6), (1.0, 1.0, 4.0))
    flat = Stack(Scan(torch.ones(6, 6, 6), grid, source="flat.nii"), 4.0)
    other = Stack(Scan(torch.rand(6, 6, 6), grid, source="b.nii"), 4.0)
    with pytest.raises(InputError, match="at least two"):
        register_stacks([other], Run())
    with pytest.raises(InputError, match="reference is one of stacks 0 to 1, got 2"):
        register_stacks([other, other], Run(), reference=2)
    with pytest.raises(InputError, match="no contrast in its mask") as caught:
        register_stacks([other, flat], Run())
    assert caught.value.where == "flat.nii"


@pytest.mark.data
def test_real_stacks_come_together(development_data):
    """Three orthogonal stacks of one fetus: they agree afterwards, and wherever the search is seeded."""
    stacks = []
    for run in (1, 3, 5):
        stem = development_data / "fetal" / f"mial_run-{run}"
        stacks.append(with_stack_mask(read_stack(f"{stem}_T2w.nii.gz"), read_nifti(f"{stem}_mask.nii.gz")))
    check_stacks(stacks)
    slices = slice_set(stacks)
    a, b = (register_stacks(stacks, Run(seed=seed), reference=1) for seed in (0, 1))
    assert max(a.ncc_before) < 0.75 and min(a.ncc_after) > 0.85
    apart = pose_errors(a.applied(slices).initial, b.applied(slices).initial).summary()
    assert apart["rotation_deg"] < 1 and apart["displacement_mm"] < 0.7
