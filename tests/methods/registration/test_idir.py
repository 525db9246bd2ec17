"""IDIR: published shape and start, its loss in the coordinates of the paper, known maps found again, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.calculus import determinant, hessian, jacobian
from scanfield.losses.deformation import bending, volume_change
from scanfield.methods.registration import idir
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction, Spec

QUICK = idir.Config(width=48, hidden_layers=2, omega=8.0, steps=250, learning_rate=1e-3, points_per_step=1500)
QUICK = replace(QUICK, start="identity", scaling="isotropic", final_rate=0.05, regulariser_share=0.25)


def oblique(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """A turned and tilted, left-handed grid away from the origin."""
    (a, b), (c, d) = np.cos([0.4, -0.3]), np.sin([0.4, -0.3])
    turn = np.array([[a, -c, 0], [c, a, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, b, -d], [0, d, b]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing[0], spacing[1], spacing[2]])
    affine[:3, 3] = [-60, 25, 110]
    return Grid(shape, affine)


VOLUME = oblique((26, 22, 16), (2.0, 2.0, 3.0))
SLICE = oblique((40, 36, 1), (2.0, 2.0, 5.0))


def body(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """A smooth image with structure along every axis of the grid."""
    place = (x.double() - torch.tensor(grid.centre_mm)) @ torch.tensor(grid.directions)
    p, q, r = (place / torch.tensor([7.0, 6.0, 8.0])).unbind(-1)
    return p.cos() * q.sin() + (q + r).cos() + (0.4 * p * r.sin()) + (-(place.square().sum(-1)) / 500).exp() * 3


def true_map(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """A smooth motion of up to 5 mm within the axes that a grid has."""
    directions = torch.tensor(grid.directions)
    place = (x.double() - torch.tensor(grid.centre_mm)) @ directions
    u = torch.stack([4 + (place[:, 1] / 15).sin(), -2 * (place[:, 0] / 18).cos(), 1.5 * (place[:, 0] / 20).sin()], -1)
    return x.double() + u * torch.tensor([float(n > 1) for n in grid.shape]) @ directions.T


def pair(grid: Grid, contrast: float = 1.0) -> Pair:
    """The moving image is `body`; a point x of the fixed image shows body(true_map(x))."""
    x = grid.points()
    fixed = contrast * body(true_map(x, grid), grid)
    scans = [Scan(values.float().reshape(grid.shape), grid) for values in (fixed, body(x, grid))]
    return Pair(*scans)


def inner(grid: Grid) -> torch.Tensor:
    """Voxel centres whose places in the moving image are inside it."""
    x = grid.points()
    margin = torch.tensor([4.0 if n > 1 else -0.1 for n in grid.shape])
    place = grid.to_voxel(x.double())
    return x[((place >= margin) & (place <= torch.tensor(grid.shape) - 1 - margin)).all(-1)]


def error_mm(result: Reconstruction, grid: Grid) -> tuple[float, float]:
    """Mean distance from the true places, without and with the registration."""
    x = inner(grid)
    truth = true_map(x, grid)
    with torch.no_grad():
        mapped = idir.transform(result)(x).double()
    return float((truth - x).norm(dim=-1).mean()), float((truth - mapped).norm(dim=-1).mean())


def untrained(config: idir.Config, data: Pair) -> tuple[idir.Field, Spec]:
    spec = idir.spec_of(config, data, Run(seed=1))
    return idir.build(config, spec), spec


def test_the_published_network_and_its_start() -> None:
    """The output weights are U(-a, a), a = sqrt(6 / 256) / 32: on 256 sines about 0.03 half extents, plus the bias."""
    data = pair(VOLUME)
    field, spec = untrained(idir.Config(), data)
    assert sum(p.numel() for p in field.parameters()) == 133_379
    x = VOLUME.points()
    with torch.no_grad():
        u = field(x) @ torch.tensor(VOLUME.directions).float() / torch.tensor(spec.domain.half_scale()).float()
        ripple = u - field.network.linears[-1].bias  # type: ignore[union-attr,index]
        assert 0.02 < float(ripple.square().mean().sqrt()) < 0.04
        near, _ = untrained(replace(idir.Config(), start="identity"), data)
        assert float(near(x).norm(dim=-1).max()) < 0.2  # mm


def test_every_axis_fills_the_unit_box_unless_millimetres_are_to_count_the_same() -> None:
    data = pair(VOLUME)
    corners = torch.tensor(VOLUME.corners_mm(), dtype=torch.float32)
    for scaling, expected in (("per-axis", [1.0, 1.0, 1.0]), ("isotropic", [1.0, 44 / 52, 48 / 52])):
        field, _ = untrained(replace(idir.Config(), scaling=scaling), data)  # type: ignore[arg-type]
        assert field.features(corners).abs().amax(0).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_regularisers_are_those_of_the_unit_coordinates() -> None:
    """det J is the same in mm; second derivatives H_cij in mm become H_cij h_i h_j / h_c."""
    data = pair(VOLUME)
    config = replace(QUICK, scaling="per-axis", start="random", regulariser_share=1.0)
    field, spec = untrained(config, data)
    x = inner(VOLUME)[::40]
    images = idir.Images(config, data, 0.0)
    phi = idir.transform(Reconstruction("idir", config, spec, field))
    cost = idir.terms(config, field, images, x)["jacobian"].detach()
    assert float(cost) == pytest.approx(float(volume_change(jacobian(phi, x)[1]).detach()), rel=1e-4)

    directions = torch.tensor(VOLUME.directions, dtype=torch.float32)
    half = torch.tensor(spec.domain.half_scale(), dtype=torch.float32)
    second = torch.einsum("ca,ncij,ib,jd->nabd", directions, hessian(phi, x)[2], directions, directions)
    second = second / half[:, None, None] * half[:, None] * half
    cost = idir.terms(replace(config, regulariser="bending"), field, images, x)["bending"].detach()
    assert float(cost) == pytest.approx(float(bending(second).detach()), rel=1e-3)


@pytest.mark.parametrize("regulariser", ["jacobian", "hyperelastic", "bending"])
def test_a_quarter_of_the_points_gives_the_mean_of_all_on_average(regulariser: str) -> None:
    data = pair(VOLUME)
    config = replace(QUICK, regulariser=regulariser, start="random")  # type: ignore[arg-type]
    field, _ = untrained(config, data)
    images, x = idir.Images(config, data, 0.0), VOLUME.points()[:4000:10]
    whole = idir.terms(replace(config, regulariser_share=1.0), field, images, x)
    turns = [idir.terms(config, field, images, x.roll(100 * k, dims=0)) for k in range(4)]
    assert float(torch.stack([t[regulariser] for t in turns]).mean()) == pytest.approx(
        float(whole[regulariser]), rel=1e-4
    )
    assert all(float(t["ncc"]) == pytest.approx(float(whole["ncc"]), abs=1e-5) for t in turns)
    assert len({round(float(t[regulariser]), 7) for t in turns}) == 4


def test_the_published_weights() -> None:
    for name, weight in (("jacobian", 0.05), ("hyperelastic", 0.25), ("bending", 1e-3)):
        assert idir.weights(idir.Config(regulariser=name)) == {name: weight}  # type: ignore[arg-type]
    assert idir.weights(idir.Config(regulariser="bending", regulariser_strength=2.0)) == {"bending": 2e-3}
    assert idir.weights(idir.Config(regulariser="none")) == {}
    assert idir.weights(idir.Config(regulariser="none", fold_strength=2.0)) == {"folding": 2.0}


@pytest.mark.parametrize("regulariser", ["jacobian", "hyperelastic", "bending", "none"])
def test_folds_cost_extra_beside_any_regulariser(regulariser: str) -> None:
    data = pair(VOLUME)
    config = replace(QUICK, regulariser=regulariser, fold_strength=1.0)  # type: ignore[arg-type]
    field, _ = untrained(config, data)
    images = idir.Images(config, data, 0.0)
    for parameter in list(field.network.parameters())[-2:]:  # a field that turns much of the image inside out
        parameter.data.mul_(3e4)
    x = inner(VOLUME)
    share = x[: round(len(x) * config.regulariser_share)]
    _, matrix = jacobian(idir.Displacement(field), share)
    expected = (0.2 - determinant(matrix)).clamp_min(0).mean()
    found = idir.terms(config, field, images, x)
    assert expected > 0.01 and float(found["folding"]) == pytest.approx(float(expected), rel=1e-3)
    assert set(found) == {"ncc", "folding", *({regulariser} - {"none"})}


@pytest.mark.parametrize("grid", [VOLUME, SLICE], ids=["volume", "slice"])
def test_a_known_map_is_found_on_an_oblique_left_handed_grid(grid: Grid) -> None:
    result = idir.fit(QUICK, pair(grid), Run(seed=2))
    before, after = error_mm(result, grid)
    assert after < 0.2 * before
    with torch.no_grad():
        x = inner(grid)
        assert float(determinant(jacobian(idir.transform(result), x)[1]).min()) > 0
        if grid is SLICE:
            normal = torch.tensor(grid.directions[:, 2], dtype=torch.float32)
            assert float((result.field(x) @ normal).abs().max()) < 1e-5


@pytest.mark.parametrize("similarity", ["mi", "ngf"])
def test_other_similarities_align_inverted_contrast(similarity: str) -> None:
    config = replace(QUICK, similarity=similarity, regulariser_strength=4.0)  # type: ignore[arg-type]
    before, after = error_mm(idir.fit(config, pair(SLICE, contrast=-1.0), Run(seed=2)), SLICE)
    assert after < 0.35 * before
    before, wrong = error_mm(idir.fit(QUICK, pair(SLICE, contrast=-1.0), Run(seed=2)), SLICE)
    assert wrong > 0.8 * before  # correlation has a sign


def test_what_the_moving_image_does_not_show_counts_only_as_published() -> None:
    data = pair(SLICE)
    hidden = torch.ones(SLICE.shape, dtype=torch.bool)
    hidden[:15] = False
    masked = Pair(data.fixed, replace(data.moving, mask=hidden))
    spoilt = masked.moving.values.clone()
    spoilt[:15] = 50.0
    spoilt = Pair(data.fixed, replace(masked.moving, values=spoilt))
    field, _ = untrained(QUICK, data)
    x = SLICE.points()
    config = replace(QUICK, overlap_only=True)

    def value(config: idir.Config, data: Pair) -> float:
        # The interpolation of a kept voxel next to the edge would read a hidden one: points are voxel centres.
        torch.nn.init.zeros_(field.network.linears[-1].weight)  # type: ignore[operator,union-attr]
        return float(idir.terms(config, field, idir.Images(config, data, 0.0), x)["ncc"])

    assert value(config, masked) == pytest.approx(value(config, spoilt), abs=1e-5)
    assert value(QUICK, masked) != pytest.approx(value(QUICK, spoilt), abs=1e-2)


def test_points_are_drawn_in_the_fixed_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = pair(VOLUME), []
    mask = torch.zeros(VOLUME.shape, dtype=torch.bool)
    mask[5:9, 3:10, 2:7] = True
    plain = idir.terms

    def spy(config: idir.Config, field: idir.Field, images: idir.Images, x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(x)
        return plain(config, field, images, x)

    monkeypatch.setattr(idir, "terms", spy)
    for jitter in (False, True):
        idir.fit(replace(QUICK, steps=3, jitter=jitter), Pair(replace(data.fixed, mask=mask), data.moving), Run())
        place = VOLUME.to_voxel(torch.cat(seen).double())
        assert bool(mask[tuple(place.round().long().unbind(-1))].all())
        assert bool((place - place.round()).abs().max() > 0.1) == jitter
        seen.clear()


def test_stages_see_images_that_are_less_and_less_smoothed(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    plain = idir.terms
    monkeypatch.setattr(
        idir, "terms", lambda c, f, images, x: (used.append(float(images.fixed.image.std())), plain(c, f, images, x))[1]
    )
    idir.fit(replace(QUICK, steps=7, smoothing_mm=(8.0, 4.0, 0.0)), pair(VOLUME), Run())
    assert used[0] == used[2] < used[3] == used[4] < used[5] == used[6]
    assert used[6] == pytest.approx(float(pair(VOLUME).fixed.values.std()))


def test_held_out_voxels_watch_the_fit_and_do_not_change_it() -> None:
    data = pair(SLICE)
    unseen = torch.zeros(SLICE.shape, dtype=torch.bool)
    unseen[::4, ::4] = True
    seen = Pair(replace(data.fixed, mask=~unseen), data.moving)
    config = replace(QUICK, steps=100)
    watched = idir.fit(config, seen, Run(seed=4), held_out=Pair(replace(data.fixed, mask=unseen), data.moving))
    alone = idir.fit(config, seen, Run(seed=4))
    history = [line["held_out"] for line in watched.logs[0].history if line["held_out"] is not None]
    assert len(history) == 10 and history[-1] < 0.5 * history[0]
    assert all(torch.equal(a, b) for a, b in zip(watched.field.parameters(), alone.field.parameters(), strict=True))


def test_a_result_is_rebuilt_from_its_file_and_constant_beyond_its_box(tmp_path) -> None:
    result = idir.fit(replace(QUICK, steps=20), pair(VOLUME), Run(seed=2))
    result.save(tmp_path / "field.safetensors")
    back = Reconstruction.load(tmp_path / "field.safetensors")
    corner = torch.tensor(VOLUME.corners_mm()[:1], dtype=torch.float32)
    beyond = corner + 3 * (corner - torch.tensor(VOLUME.centre_mm, dtype=torch.float32))
    with torch.no_grad():
        x = torch.cat([VOLUME.points()[::50], corner, beyond])
        assert torch.equal(idir.transform(result)(x), idir.transform(back)(x))
        u = idir.transform(back)(x) - x
    assert u[-1].tolist() == pytest.approx(u[-2].tolist(), abs=1e-3)


def test_rivals_of_two_modalities_maximise_mutual_information() -> None:
    similarities = [idir.similarity(idir.Config(similarity=name)) for name in ("ncc", "mi", "ngf")]  # type: ignore[arg-type]
    assert similarities == ["ncc", "mi", "mi"]


def test_impossible_settings_are_refused() -> None:
    for settings in (
        {"regulariser_share": 0.0},
        {"regulariser_share": 1.5},
        {"edge_noise": 0.0},
        {"smoothing_mm": ()},
        {"smoothing_mm": (-1.0,)},
        {"smoothing_mm": (float("nan"),)},
        {"activation": "relu", "regulariser": "bending"},
    ):
        with pytest.raises(InputError):
            idir.Config(**settings)
