"""Pictures of a fit while it fits: what they show, what they cost, and that they change nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.methods import api
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.run import Run, Shown
from scanfield.space.grid import Grid
from scanfield.view import preview as module
from scanfield.view.preview import FILE, SHARE, FitPreview
from scanfield.view.raster import decode


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("pixel_s", [1e-8, 1e-5, 3e-4, 0.05])
def test_pictures_take_a_bounded_share_whatever_the_field_costs(tmp_path: Path, pixel_s: float) -> None:
    clock, sizes = Clock(), []
    grid = Grid.centred((256, 256, 200), 1.0)

    def image(plane: Grid) -> Tensor:
        clock.now += pixel_s * plane.size
        sizes.append(max(plane.shape))
        return torch.zeros(plane.shape)

    watching = FitPreview(tmp_path, clock=clock)
    watching.show(Shown(lambda: image, grid, "1/mm"))
    start = clock.now
    while clock.now - start < 900:
        clock.now += 0.5
        watching.look("fit", 1, nullcontext)
    first = pixel_s * 3 * module.SMALLEST**2  # its cost is not known before
    assert watching.spent <= max(1.05 * SHARE * (clock.now - start), first)
    assert len(sizes) >= 3 and sizes[0] == module.SMALLEST
    if pixel_s <= 1e-8:
        assert sizes[-1] == module.LARGEST and len(sizes) > 900, "a cheap field is seen every other second"


@pytest.mark.parametrize("prepared_s", [1e-3, 0.05, 4.0])
def test_what_is_prepared_makes_pictures_rare_and_not_small(tmp_path: Path, prepared_s: float) -> None:
    """An image has to be encoded before any of its points can be asked."""
    clock, sizes = Clock(), []
    grid = Grid.centred((256, 256, 200), 1.0)

    def image(plane: Grid) -> Tensor:
        clock.now += 1e-7 * plane.size
        sizes.append(max(plane.shape))
        return torch.zeros(plane.shape)

    def prepare() -> Callable[[Grid], Tensor]:
        clock.now += prepared_s
        return image

    watching = FitPreview(tmp_path, clock=clock)
    watching.show(Shown(prepare, grid, "1/mm"))
    start = clock.now
    while clock.now - start < 900:
        clock.now += 0.1
        watching.look("fit", 1, nullcontext)
    assert watching.spent <= max(1.05 * SHARE * (clock.now - start), prepared_s + 1)
    assert sizes[-1] == module.LARGEST and len(sizes) >= 3 * min(400, 0.8 * SHARE * 900 / prepared_s)


def test_a_picture_says_what_it_shows_in_its_own_window(tmp_path: Path) -> None:
    clock = Clock()
    watching = FitPreview(tmp_path, clock=clock)
    zeros = Shown(
        lambda: lambda plane: torch.zeros(plane.shape), Grid.centred((9, 9, 1), 1.0), "", "classes", (0.0, 2.0)
    )
    watching.show(zeros)
    for _ in range(2):
        clock.now += 5
        watching.look("network", 1, nullcontext)
    facts, _ = decode((tmp_path / FILE).read_bytes())
    assert facts["pictures"][0]["label"] == "axial: classes" and facts["pictures"][0]["window"] == [0.0, 2.0]


def test_planes_are_those_of_the_image_as_they_stand_on_screen(tmp_path: Path) -> None:
    clock = Clock()
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = (40.0, -10.0, 5.0)
    grid = Grid((40, 60, 20), affine)
    watching = FitPreview(tmp_path, clock=clock)
    watching.show(Shown(lambda: lambda plane: plane.points()[:, 0].reshape(plane.shape), grid, "mm"))
    watching.look("slice-000", 3, nullcontext)
    assert not (tmp_path / FILE).exists(), "not at once"
    clock.now += 5
    watching.look("slice-000", 4, nullcontext)
    facts, values = decode((tmp_path / FILE).read_bytes())
    assert (facts["stage"], facts["step"]) == ("slice-000", 4)
    assert [p["label"] for p in facts["pictures"]] == ["axial", "coronal", "sagittal"]
    for picture, shown in zip(facts["pictures"][:2], values[:2], strict=True):
        assert picture["edges"][:2] == ["R", "L"] and picture["unit"] == "mm"
        assert (np.diff(shown, axis=1) < 0).all(), "the patient's right, larger x, is on the left"
        columns = shown.shape[1]
        assert columns * picture["pixel"][1] == pytest.approx(80.0)
    watching.clear()
    assert not (tmp_path / FILE).exists()


def test_what_cannot_be_drawn_does_not_cost_the_fit(tmp_path: Path) -> None:
    clock = Clock()
    watching = FitPreview(tmp_path, clock=clock)
    calls = []

    def image(plane: Grid) -> Tensor:
        calls.append(plane)
        raise RuntimeError("out of memory")

    watching.show(Shown(lambda: image, Grid.centred((8, 8, 1), 1.0), ""))
    for _ in range(5):
        clock.now += 100
        watching.look("fit", 1, nullcontext)
    assert len(calls) == 1


def disc() -> Scan:
    grid = Grid.centred((32, 32, 1), 2.0)
    return Scan(0.02 * (grid.points()[:, :2].norm(dim=-1) < 20).float().reshape(grid.shape), grid, unit="1/mm")


def data_of(kind: str) -> object:
    if kind == "pair":
        return Pair(disc(), disc())
    return disc() if kind == "image" else simulate_ct(disc(), CtScanOptions(views=16, bins=32))


@pytest.mark.parametrize(
    ("method", "kind"), [("scope", "scan"), ("uncertainr", "scan"), ("siren", "image"), ("idir", "pair")]
)
def test_a_fit_that_is_watched_is_the_same_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str
) -> None:
    monkeypatch.setattr(module, "SHARE", 1e9)
    for name in ("FIRST_S", "EVERY_S"):
        monkeypatch.setattr(module, name, 0.0)
    methods, data = api.load(method), data_of(kind)
    config = methods.Config.tiny()
    fields = []
    for preview in (None, FitPreview(tmp_path, clock=time.perf_counter)):
        result = methods.fit(config, data, Run(seed=5, preview=preview))
        fields.append(result.field.state_dict())
    facts, values = decode((tmp_path / FILE).read_bytes())
    assert facts["step"] == result.logs[-1].steps, "drawn after every step"
    assert np.isfinite(values[0]).all() and values[0].std() > 0
    assert all(torch.equal(fields[0][name], fields[1][name]) for name in fields[0])
