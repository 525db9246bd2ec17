"""NIR: lattices with their windows, a flow that does not fold and inverts itself, bias fields that do not matter."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.calculus import determinant, jacobian
from scanfield.methods.registration import nir
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.lattice import MaskedVoxels
from scanfield.tasks.result import Reconstruction

GRID = Grid.centred((30, 28, 24), (2.0, 2.0, 2.5))
QUICK = replace(nir.Config.tiny(), steps=80, width=32, patch_size=14, omega=12.0, smoothness=0.3)
BIAS = 0.3


BLOBS = 60 * (torch.rand(90, 3, generator=torch.Generator().manual_seed(5)) - 0.5)


def brain(x: torch.Tensor) -> torch.Tensor:
    """Bright and dark blobs of 5 mm everywhere."""
    sign = torch.arange(len(BLOBS)) % 2 * 2.0 - 1
    return 3 + ((x[:, None] - BLOBS).square().sum(-1) / -50).exp() @ sign


def moved(x: torch.Tensor) -> torch.Tensor:
    """The true map: up to 4 mm."""
    u = torch.stack([2.5 + (x[:, 1] / 15).sin(), -1.5 * (x[:, 0] / 18).cos(), (x[:, 0] / 20).sin()], -1)
    return x + u


def pair(bias: float = 0.0, mask: bool = False) -> Pair:
    """The moving image is `brain`; a point x of the fixed image shows brain(moved(x)), times a smooth field."""
    x = GRID.points()
    field = (bias * (x[:, 0] / 30 + (x[:, 1] / 28) ** 2 - x[:, 2] / 40)).exp()
    fixed, moving = (v.reshape(GRID.shape) for v in (brain(moved(x)) * field, brain(x)))
    inside = (x.norm(dim=-1) < 26).reshape(GRID.shape) if mask else None
    return Pair(Scan(fixed, GRID, mask=inside), Scan(moving, GRID))


def error_mm(result: Reconstruction) -> float:
    x = GRID.points()
    x = x[(x.abs() < torch.tensor([24.0, 22.0, 24.0])).all(-1)]
    with torch.no_grad():
        return float((nir.transform(result)(x) - moved(x)).norm(dim=-1).mean())


def test_a_step_looks_at_patches_and_at_the_whole_image() -> None:
    config = replace(nir.Config(), patches=3, patch_size=8, stride=4, window_mm=6.0, lattice_window_mm=24.0)
    voxels, draws = MaskedVoxels(GRID, pair(mask=True).fixed.mask), torch.Generator().manual_seed(0)
    patches, whole = nir.looks(config, voxels, draws)
    assert patches.samples.x.shape == (3, 8, 8, 8, 3) and patches.window == (3, 3, 3)
    assert whole.samples.lattice is not None and whole.samples.lattice[0] in (7, 8) and whole.window == (3, 3, 3)
    x = patches.samples.x[0]
    for axis, spacing in enumerate(GRID.spacing_mm):
        steps = x.diff(dim=axis).norm(dim=-1)
        assert torch.allclose(steps, torch.tensor(spacing), atol=1e-4)
    place = GRID.to_voxel(patches.samples.x[:, 0, 0, 0].double())
    assert float((place - place.round()).abs().max()) > 0.05  # between the voxel centres
    (points,) = nir.looks(replace(config, similarity="ncc", sampling="points"), voxels, draws)
    assert len(points.samples.x) == 3 * 512 + 8 * 7 * 6 and points.window is None


def test_the_first_map_is_the_identity() -> None:
    data = pair()
    for mode in ("displacement", "velocity"):
        config = replace(nir.Config(), mode=mode)  # type: ignore[arg-type]
        warp = nir.build(config, nir.spec_of(data, Run(seed=1)))
        x = GRID.points()[::53]
        assert float((warp.phi()(x) - x).norm(dim=-1).max().detach()) < 0.5


@pytest.mark.parametrize("mode", ["displacement", "velocity"])
def test_a_known_motion_is_found_under_a_bias_field(mode: str) -> None:
    x = GRID.points()
    before = float((moved(x) - x).norm(dim=-1).mean())
    result = nir.fit(replace(QUICK, mode=mode), pair(BIAS), Run(seed=0))
    assert error_mm(result) < 0.45 * before


def test_global_correlation_suffers_more_from_a_bias_field() -> None:
    local = nir.fit(QUICK, pair(BIAS), Run(seed=0))
    single = nir.fit(replace(QUICK, sampling="points", similarity="ncc"), pair(BIAS), Run(seed=0))
    assert error_mm(local) < 0.6 * error_mm(single)


def test_a_flow_is_inverted_by_the_flow_backwards() -> None:
    config = replace(QUICK, mode="velocity", integration_steps=4, pre_alignment="rigid", steps=40)
    result = nir.fit(config, pair(), Run(seed=0))
    phi, psi = nir.transform(result), nir.inverse(result)
    assert psi is not None
    x = 0.8 * GRID.points()[::7]
    with torch.no_grad():
        assert float((psi(phi(x)) - x).norm(dim=-1).max()) < 0.02
        assert float((phi(x) - x).norm(dim=-1).mean()) > 1
    assert float(determinant(jacobian(phi, x)[1]).min().detach()) > 0
    assert nir.inverse(nir.fit(replace(QUICK, steps=1), pair(), Run())) is None


def test_the_affine_stage_is_kept_and_frozen(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = pair()
    result = nir.fit(replace(QUICK, pre_alignment="affine", steps=5), data, Run(seed=0))
    assert [log.stage for log in result.logs] == ["pose 0", "pose 1", "fit"]
    assert error_mm(result) < 1.7
    result.provenance = {}
    result.save(tmp_path / "field.safetensors")
    again = Reconstruction.load(tmp_path / "field.safetensors")
    x = GRID.points()[::31]
    with torch.no_grad():
        assert torch.equal(nir.transform(again)(x), nir.transform(result)(x))


def test_penalties_hold_a_displacement_back() -> None:
    roughness = []
    for smoothness in (0.0, 10.0):
        result = nir.fit(replace(QUICK, smoothness=smoothness, steps=40), pair(), Run(seed=0))
        slope = jacobian(nir.transform(result), GRID.points()[::29])[1] - torch.eye(3)
        roughness.append(float(slope.detach().square().sum((-1, -2)).mean()))
    assert all(a > 1.5 * b for a, b in pairwise(roughness))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "points"}, "isolated points have no windows"),
        ({"regulariser_share": 0.0}, "share of the points"),
        ({"patch_size": 0}, "at least 1"),
        ({"smoothness": -1.0}, "weights are at least 0"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(nir.Config(), **change)  # type: ignore[arg-type]


def test_slices_stay_slices() -> None:
    grid = Grid.centred((40, 36, 1), (2.0, 2.0, 5.0))
    x = grid.points()
    scans = [Scan(brain(place).reshape(grid.shape), grid) for place in (x + torch.tensor([2.0, -1.0, 0.0]), x)]
    config = replace(QUICK, pre_alignment="rigid", steps=20)
    phi = nir.transform(nir.fit(config, Pair(*scans), Run(seed=0)))
    with torch.no_grad():
        u = phi(x) - x
    assert float(u[:, 2].abs().max()) < 1e-4 and float((u - torch.tensor([2.0, -1.0, 0.0])).norm(dim=-1).mean()) < 1
