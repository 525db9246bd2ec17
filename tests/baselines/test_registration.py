"""The rivals find a known smooth warp, and refuse what they cannot take."""

import numpy as np
import pytest
import torch

from scanfield.baselines import registration
from scanfield.baselines.registration import BASELINES, bspline, simpleitk_bspline
from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.motion import LatticeDisplacement
from scanfield.run import Run
from scanfield.space.grid import Grid


def left_handed(shape, spacing):
    grid = Grid.centred(shape, spacing)
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.eye(4)
    turn[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([-1, 1, 1])
    turn[:3, 3] = [40.0, -10.0, 5.0]
    return grid.moved(turn)


def image(x):
    """Smooth blobs in the world."""
    centres = torch.tensor([[30.0, -20.0, 0.0], [50.0, 0.0, 10.0], [35.0, 5.0, -5.0], [55.0, -25.0, 8.0]])
    return torch.exp(-((x[:, None] - centres) ** 2).sum(-1) / 150).sum(-1)


def true_inverse(y):
    return y + 4 * torch.sin(y[:, [1, 0, 2]] / 25) * torch.tensor([1.0, 1.0, 0.0])


def blobs(shape=(30, 28, 14), spacing=2.5, sign=1.0):
    fixed, moving = left_handed(shape, spacing), left_handed(tuple(n + 2 if n > 1 else 1 for n in shape), 2.6)
    a = image(fixed.points()).reshape(fixed.shape)
    b = image(true_inverse(moving.points())).reshape(moving.shape)
    return Pair(Scan(a, fixed), Scan(sign * b, moving))


def errors(phi, pair):
    """Mean distance before and after, where the object is."""
    y = pair.moving.grid.points()
    bright = image(true_inverse(y)) > 0.3
    y = y[bright][::11]
    x = true_inverse(y)
    with torch.no_grad():
        return (x - y).norm(dim=-1).mean().item(), (phi(x) - y).norm(dim=-1).mean().item()


@pytest.mark.parametrize("shape", [(30, 28, 14), (30, 28, 1)])
@pytest.mark.parametrize(("similarity", "sign"), [("ncc", 1.0), ("mi", -1.0)])
def test_bspline_finds_a_smooth_warp(shape, similarity, sign, monkeypatch):
    monkeypatch.setattr(registration, "STEPS", 40)
    monkeypatch.setattr(registration, "POINTS", 2000)
    monkeypatch.setattr(registration, "BENDING_POINTS", 500)
    pair = blobs(shape, sign=sign)
    before, after = errors(bspline(pair, similarity, Run()), pair)
    assert after < 0.35 * before


def test_simpleitk_maps_the_same_way(monkeypatch):
    pytest.importorskip("SimpleITK")
    monkeypatch.setattr(registration, "ITK_ITERATIONS", 3)  # without regularisation, blobs soon say nothing more
    pair = blobs()
    before, after = errors(simpleitk_bspline(pair, "ncc", Run()), pair)
    assert after < 0.5 * before


def test_simpleitk_says_what_it_does_not_take():
    pytest.importorskip("SimpleITK")
    with pytest.raises(InputError, match="volumes only"):
        simpleitk_bspline(blobs((30, 28, 1)), "ncc", Run())


def test_lattice_displacement_interpolates_what_it_is_given():
    grid = left_handed((9, 8, 7), 3.0)
    values = torch.stack([torch.sin(grid.points() / 20), torch.cos(grid.points() / 20)]).sum(0)
    phi = LatticeDisplacement(values.reshape(*grid.shape, 3), grid)
    x = grid.points()
    assert torch.allclose(phi(x) - x, values, atol=1e-3)


def test_rivals_have_labels_and_notes():
    assert list(BASELINES) == ["bspline", "simpleitk-bspline"]
    assert all(b.label and b.note.endswith(".") for b in BASELINES.values())
