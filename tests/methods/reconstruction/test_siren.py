"""SIREN: initial statistics, every kind of supervision on images with known answers, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.calculus import value_and_gradient
from scanfield.fields.networks.siren import Siren
from scanfield.methods import api
from scanfield.methods.reconstruction import siren
from scanfield.metrics.image import psnr_db
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction, Spec

CONFIG = siren.Config(width=32, hidden_layers=3, first_omega=8.0, steps=150, learning_rate=2e-3)


def oblique(shape: tuple[int, int, int], spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> Grid:
    """A rotated, left-handed grid away from the origin."""
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing[0], spacing[1], spacing[2]])
    affine[:3, 3] = [30, -20, 10]
    return Grid(shape, affine)


def waves(grid: Grid, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A smooth image in HU: 300 cos(x / 9) cos(y / 7 mm) + 40."""
    x = grid.points().double() - torch.tensor(grid.centre_mm)
    return (300 * (x[:, 0] / 9).cos() * (x[:, 1] / 7).cos() + 40).reshape(grid.shape).to(dtype)


def test_parameters_of_the_published_networks() -> None:
    generator = torch.Generator().manual_seed(0)
    for dims, expected in ((2, 198_401), (3, 198_657)):
        network = Siren([dims, *[256] * 4, 1], omegas=[30.0] * 4, generator=generator)
        assert sum(p.numel() for p in network.parameters()) == expected
    spec = Spec(siren.Domain.of_grid(oblique((8, 8, 1))), oblique((8, 8, 1)), "HU", 1.0, facts(2))
    assert sum(p.numel() for p in siren.build(siren.Config(), spec).parameters()) == 198_401


def facts(octaves: int) -> dict[str, float | int]:
    return {"weights_seed": 3, "channels": 1, "offset": 0.0, "octaves": octaves}


def test_initial_activations_are_standard_normal_at_any_depth() -> None:
    """omega W h is about N(0, 1) before every sine but the first, and the output's spread is sqrt(2) / 2 / omega.

    The paper's statement is about W h; biases add a constant per unit that it neglects.
    """
    omega, generator = 30.0, torch.Generator().manual_seed(0)
    u = 2 * torch.rand(4096, 2, generator=generator) - 1
    outputs = []
    for depth in (2, 4, 8):
        network = Siren([2, *[256] * depth, 256], omegas=[omega] * depth, generator=generator)
        h = u
        with torch.no_grad():
            for k, layer in enumerate(network.layers[:-1]):
                if k > 0:
                    before = omega * h @ layer.weight.T
                    assert abs(float(before.mean())) < 0.1
                    assert float(before.std()) == pytest.approx(1.0, abs=0.06)
                    kurtosis = ((before - before.mean()) / before.std()).pow(4).mean()
                    assert float(kurtosis) == pytest.approx(3.0, abs=0.4)
                h = torch.sin(omega * layer(h))
            outputs.append(omega * float((h @ network.layers[-1].weight.T).std()))
    assert outputs == pytest.approx([1.0] * 3, abs=0.15)


@pytest.mark.parametrize("activation", ["sine", "relu", "relu-frequency"])
def test_values_are_fitted_in_the_image_s_unit(activation: str) -> None:
    grid = oblique((24, 20, 1))
    image = Scan(waves(grid), grid, "HU")
    result = siren.fit(replace(CONFIG, activation=activation), image, Run())
    assert result.spec.unit == "HU"
    rendered = siren.render(result, grid)
    assert psnr_db(rendered, image.values) > (30 if activation == "sine" else 12)
    assert abs(float(rendered.mean() - image.values.mean())) < 60


def test_integers_volumes_and_channels_are_fitted() -> None:
    grid = oblique((10, 8, 6))
    integer = waves(grid).round().to(torch.int16)
    result = siren.fit(replace(CONFIG, points_per_step=200), Scan(integer, grid, "HU"), Run())
    assert psnr_db(siren.render(result, grid), integer.float()) > 25
    two = torch.stack([waves(grid), 2 * waves(grid)], dim=-1)
    result = siren.fit(CONFIG, Scan(two, grid), Run())
    rendered = siren.render(result, grid)
    assert rendered.shape == (10, 8, 6, 2)
    assert psnr_db(rendered[..., 1], two[..., 1]) > 20


def test_the_fit_does_not_see_voxels_outside_the_mask() -> None:
    grid = oblique((16, 16, 1))
    values = waves(grid)
    held = torch.zeros(grid.shape, dtype=torch.bool)
    held[::3, ::2] = True
    spoiled = torch.where(held, torch.tensor(1e6), values)
    clean, dirty = (
        siren.fit(replace(CONFIG, steps=20), Scan(v, grid, mask=~held), Run()).field.state_dict()
        for v in (values, spoiled)
    )
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)
    result = siren.fit(CONFIG, Scan(values, grid, mask=~held), Run(), held_out=Scan(values, grid, mask=held))
    truth = float((siren.render(result, grid)[held] - values[held]).square().mean().sqrt())
    assert result.logs[0].history[-1]["held_out"] == pytest.approx(truth, rel=1e-3)


def test_gradient_supervision_recovers_the_image_and_its_mean() -> None:
    """On a rotated, anisotropic, left-handed grid: wrong units or directions would not integrate to the image."""
    grid = oblique((28, 20, 1), (1.5, 2.5, 1.0))
    image = Scan(waves(grid), grid, "HU")
    config = replace(CONFIG, supervision="gradient", steps=250)
    result = siren.fit(config, image, Run())
    rendered = siren.render(result, grid)
    assert float(rendered.mean()) == pytest.approx(float(image.values.mean()), abs=0.05)
    assert psnr_db(rendered, image.values) > 28
    x = grid.points().double() - torch.tensor(grid.centre_mm)
    expected = -300 / 9 * (x[:, 0] / 9).sin() * (x[:, 1] / 7).cos()
    gradient = value_and_gradient(result.field, grid.points())[1][:, 0].detach()
    assert float(torch.corrcoef(torch.stack([gradient.double(), expected]))[0, 1]) > 0.98


def test_laplacian_supervision_fits_second_derivatives_per_square_millimetre() -> None:
    grid = oblique((24, 24, 1))
    image = Scan(waves(grid), grid, "HU")
    result = siren.fit(replace(CONFIG, supervision="laplacian", steps=250), image, Run())
    assert result.logs[0].history[-1]["loss"]["laplacian"] < 0.02
    x = grid.points().double() - torch.tensor(grid.centre_mm)
    expected = -300 * (1 / 81 + 1 / 49) * (x[:, 0] / 9).cos() * (x[:, 1] / 7).cos()
    found = siren.laplacian(result.field, grid.points())[2][:, 0].detach().double()
    inner = torch.zeros(grid.shape, dtype=torch.bool)
    inner[2:-2, 2:-2] = True
    error = (found - expected)[inner.flatten()].square().mean() / expected[inner.flatten()].square().mean()
    assert float(error) < 0.05


def ball(grid: Grid, radius_mm: float) -> torch.Tensor:
    x = grid.points().double() - torch.tensor(grid.centre_mm)
    return (x.norm(dim=-1) < radius_mm).reshape(grid.shape).float()


def test_surface_supervision_gives_a_signed_distance_in_mm() -> None:
    grid = oblique((24, 24, 18), (1.0, 1.0, 1.5))
    config = replace(CONFIG, supervision="surface", steps=300, points_per_step=600, surface_points=5000)
    config = replace(config, first_omega=5.0, hidden_omega=10.0, learning_rate=1e-3)
    result = siren.fit(config, Scan(ball(grid, 8.0), grid), Run())
    mesh = siren.surface_mesh(result).largest_component()
    assert mesh.closed
    radius = np.linalg.norm(mesh.vertices - grid.centre_mm, axis=1)
    assert abs(radius.mean() - 8.0) < 0.5
    assert mesh.volume_mm3 > 0
    distance = siren.render(result, grid)
    truth = ((grid.points().double() - torch.tensor(grid.centre_mm)).norm(dim=-1) - 8.0).reshape(grid.shape)
    near, beside = truth.abs() < 1, (truth.abs() > 0.75) & (truth.abs() < 3)
    assert float((distance - truth)[near].abs().mean()) < 0.5
    assert float(((distance < 0) == (truth < 0))[beside].float().mean()) > 0.97  # negative inside
    far = Grid.centred((3, 3, 3), 200.0).moved(np.eye(4))
    assert float(siren.render(result, far).max()) > 100  # continued outside its box
    assert set(result.logs[0].history[-1]["loss"]) == {
        "on-surface",
        "normal",
        "off-surface",
        "eikonal",
        "side",
    }


def test_saved_fields_render_the_same(tmp_path) -> None:
    grid = oblique((12, 12, 1))
    result = siren.fit(siren.Config.tiny(), Scan(waves(grid), grid, "HU"), Run())
    result.save(tmp_path / "field.safetensors")
    loaded = Reconstruction.load(tmp_path / "field.safetensors")
    finer = grid.resampled(0.7)
    assert torch.equal(loaded.render(finer), result.render(finer))
    assert loaded.spec.unit == "HU"


def test_the_same_seed_gives_the_same_field() -> None:
    grid = oblique((12, 12, 1))
    fields = [siren.fit(siren.Config.tiny(), Scan(waves(grid), grid), Run(seed=s)).render() for s in (1, 1, 2)]
    assert torch.equal(fields[0], fields[1]) and not torch.equal(fields[0], fields[2])


def test_what_cannot_be_fitted_is_refused() -> None:
    grid, volume = oblique((12, 12, 1)), oblique((6, 6, 6))
    tiny = siren.Config.tiny()

    def fit(change: dict[str, str], scan: Scan, **more: Scan) -> None:
        siren.fit(replace(tiny, **change), scan, Run(), **more)

    with pytest.raises(InputError, match="no second derivative"):
        fit({"supervision": "laplacian", "activation": "relu"}, Scan(waves(grid), grid))
    with pytest.raises(InputError, match="constant"):
        fit({"supervision": "gradient"}, Scan(torch.ones(grid.shape), grid))
    with pytest.raises(InputError, match="two values"):
        fit({"supervision": "surface"}, Scan(waves(volume), volume))
    with pytest.raises(InputError, match="two values"):
        fit({"supervision": "surface"}, Scan(ball(grid, 5.0), grid))
    with pytest.raises(InputError, match="one channel"):
        fit({"supervision": "gradient"}, Scan(torch.rand(*grid.shape, 2), grid))
    with pytest.raises(InputError, match="hold out"):
        fit({"supervision": "surface"}, Scan(ball(volume, 4.0), volume), held_out=Scan(ball(volume, 4.0), volume))
    narrow = oblique((2, 12, 1))
    with pytest.raises(InputError, match="no voxel is left"):
        fit({"supervision": "laplacian"}, Scan(waves(narrow), narrow))


def test_the_card_is_complete() -> None:
    card = api.card("siren")
    assert card.accepts == ("image",) and card.arxiv == "2006.09661"
    assert "sitzmann2020siren" in card.bibtex
