"""Image similarities: invariances, known values, gradients, and images that say nothing."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scanfield.errors import InputError
from scanfield.losses.image import (
    edge_parameter,
    lattice_gradient,
    local_ncc,
    mind,
    mind_distance,
    mutual_information,
    ncc,
    ngf_distance,
    window_voxels,
)
from scanfield.space.grid import Grid

SPACING = (1.0, 1.5, 2.0)


def smooth(shape: tuple[int, ...], seed: int, sigma: float = 1.5) -> Tensor:
    """A smooth random image of zero mean and unit variance, float64."""
    noise = np.random.default_rng(seed).normal(size=shape)
    values = gaussian_filter(noise, [sigma if n > 1 else 0 for n in shape], mode="wrap")
    return torch.from_numpy((values - values.mean()) / values.std())


def ngf(p: Tensor, y: Tensor, noise: float = 0.1) -> Tensor:
    a, b = lattice_gradient(p, SPACING), lattice_gradient(y, SPACING)
    return ngf_distance(a, b, edge_parameter(a, noise), edge_parameter(b, noise))


def local(p: Tensor, y: Tensor) -> Tensor:
    return local_ncc(p, y, (5, 5, 5 if p.shape[-1] > 1 else 1))


# name: (loss that is small for alike images, its value where an image is constant)
LOSSES = {
    "ncc": (lambda p, y: 1 - ncc(p, y), 1.0),
    "local ncc": (lambda p, y: 1 - local(p, y), 1.0),
    "signed local ncc": (lambda p, y: 1 - local_ncc(p, y, (3, 3, 1), squared=False), 1.0),
    "mutual information": (lambda p, y: -mutual_information(p, y, bins=16), 0.0),
    "ngf": (ngf, 1.0),
    "mind": (mind_distance, None),
}
SHAPES = [(8, 9, 10), (12, 11, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_moving_an_image_away_costs_more(name: str, shape: tuple[int, ...]) -> None:
    loss, _ = LOSSES[name]
    image = smooth(shape, 0)
    values = [float(loss(torch.roll(image, shift, dims=0), image)) for shift in (0, 1, 2)]
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_constant_images_have_a_value_and_no_gradient(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    loss, expected = LOSSES[name]
    for constant in (0.0, 0.1, 1234.567):
        p = torch.full(shape, constant, dtype=dtype, requires_grad=True)
        value = loss(p, smooth(shape, 1).to(dtype))
        value.backward()
        assert torch.isfinite(value) and (p.grad == 0).all()
        if expected is not None:
            assert float(value.detach()) == pytest.approx(expected, abs=1e-5)
        both = loss(p.detach().requires_grad_(), torch.full(shape, -3.0, dtype=dtype))
        both.backward()
        assert torch.isfinite(both)


@pytest.mark.parametrize("shape", [(5, 6, 5), (7, 6, 1)])
@pytest.mark.parametrize("name", ["ncc", "local ncc", "signed local ncc", "mutual information", "mind"])
def test_gradients_against_differences(name: str, shape: tuple[int, ...]) -> None:
    """Two derivatives are compared, of either image. `ngf` has its own test: its edge parameter is held fixed."""
    loss, _ = LOSSES[name]
    if name == "mutual information":  # the range follows the extremes: a constant of the step
        loss = lambda p, y: mutual_information(p, y, bins=8, range_p=(-5.0, 5.0), range_y=(-4.0, 5.0))  # noqa: E731
    if name == "mind":  # the limits of its variance follow the mean, too, but no voxel here is at them
        loss = mind_distance
    p, y = smooth(shape, 2).requires_grad_(), smooth(shape, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, (p, y), atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_single_precision_agrees_with_double_far_from_zero(name: str) -> None:
    """Hounsfield units with an offset: variances are small against squares."""
    loss, _ = LOSSES[name]
    p, y = (1000 + 40 * smooth((16, 16, 16), seed) for seed in (4, 5))
    y = 0.7 * p + 0.3 * y
    p32, y32 = p.float().requires_grad_(), y.float()
    p64 = p32.detach().double().requires_grad_()
    low, high = loss(p32, y32), loss(p64, y32.double())
    (low.backward(), high.backward())
    assert float(low.detach()) == pytest.approx(float(high.detach()), abs=2e-4)
    assert (p32.grad - p64.grad).norm() < 0.01 * p64.grad.norm()


# ---- normalised cross-correlation


def test_ncc_is_the_correlation_coefficient_and_ignores_affine_intensities() -> None:
    p, y = smooth((500,), 0), smooth((500,), 1)
    expected = float(np.corrcoef(p.numpy(), y.numpy())[0, 1])
    assert float(ncc(p, y)) == pytest.approx(expected, abs=1e-12)
    assert float(ncc(2.5 * p - 300, 1e-6 * y + 1)) == pytest.approx(expected, abs=1e-6)
    assert float(ncc(p, -p)) == pytest.approx(-1.0)
    assert float(ncc(p, 3 * p + 7)) == pytest.approx(1.0)


def test_weights_of_zero_leave_points_out() -> None:
    p, y = smooth((400,), 0), smooth((400,), 1)
    weight = torch.zeros(400, dtype=torch.float64)
    weight[50:300] = 2.0
    spoiled = torch.where(weight > 0, p, torch.full_like(p, 1e3))
    assert float(ncc(spoiled, y, weight)) == pytest.approx(float(ncc(p[50:300], y[50:300])))
    information = mutual_information(spoiled, y, weight, range_p=(-4, 4), range_y=(-4, 4))
    assert float(information) == pytest.approx(
        float(mutual_information(p[50:300], y[50:300], range_p=(-4, 4), range_y=(-4, 4)))
    )


def test_no_overlap_left_is_worth_nothing_and_has_no_gradient() -> None:
    p, y = smooth((8, 8, 8), 0).requires_grad_(), smooth((8, 8, 8), 1)
    none = torch.zeros_like(y)
    gradient = lattice_gradient(p, SPACING)
    total = ncc(p, y, none) + local_ncc(p, y, (3, 3, 3), none) + mutual_information(p, y, none)
    total = total + mind_distance(p, y, none) + ngf_distance(gradient, gradient, *[torch.ones(()).double()] * 2, none)
    total.backward()
    assert float(total.detach()) == 0 and (p.grad == 0).all()


# ---- local


@pytest.mark.parametrize(("shape", "window"), [((9, 8, 7), (3, 5, 3)), ((12, 9, 1), (5, 3, 1))])
def test_local_ncc_by_brute_force(shape: tuple[int, ...], window: tuple[int, int, int]) -> None:
    """Every window written out, partial at the border and in the mask."""
    p, y = smooth(shape, 0), smooth(shape, 1)
    generator = torch.Generator().manual_seed(0)
    for weight in (None, (torch.rand(shape, generator=generator) < 0.7).double()):
        w = np.ones(shape) if weight is None else weight.numpy()
        floor, values = 1e-4, []
        a, b = p.numpy(), y.numpy()
        floor_a, floor_b = floor * np.var(a[w > 0]), floor * np.var(b[w > 0])
        for index in np.argwhere(w > 0):
            box = tuple(slice(max(0, i - s // 2), i + s // 2 + 1) for i, s in zip(index, window, strict=True))
            inside = w[box] > 0
            u, v = a[box][inside], b[box][inside]
            covariance = np.mean((u - u.mean()) * (v - v.mean()))
            values.append(covariance / np.sqrt((u.var() + floor_a) * (v.var() + floor_b)))
        found = [float(local_ncc(p, y, window, weight, squared=s)) for s in (True, False)]
        assert found == pytest.approx([np.mean(np.square(values)), np.mean(values)], abs=1e-10)


def test_local_ncc_sees_through_a_bias_field_where_the_global_one_does_not() -> None:
    image = smooth((24, 24, 24), 0, sigma=1.0)
    ramp = torch.linspace(0.5, 3.0, 24, dtype=torch.float64)[:, None, None]
    biased = (image + 4) * ramp
    assert float(local_ncc(biased, image, (5, 5, 5))) > 0.8
    assert float(ncc(biased, image)) < 0.55


def test_flat_bright_windows_are_no_structure_in_single_precision() -> None:
    """Moments in float32 would make up a correlation of several here, far above one."""
    noise = torch.rand(2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    p, y = noise[0].clone(), noise[1].clone()
    p[:, :, 4:], y[:, :, 6:] = 1000.1, 731.3
    low, high = (local_ncc(p.to(t), y.to(t), (5, 5, 5), floor=1e-9) for t in (torch.float32, torch.float64))
    assert float(low) == pytest.approx(float(high), abs=1e-6) and float(high) < 0.1


def test_inverted_contrast_is_alike_only_if_squared() -> None:
    image = smooth((10, 10, 10), 0)
    assert float(local_ncc(5 - 2 * image, image, (5, 5, 5))) > 0.98
    assert float(local_ncc(5 - 2 * image, image, (5, 5, 5), squared=False)) < -0.98


def test_batches_of_patches_are_averaged() -> None:
    p, y = smooth((4, 8, 8, 8), 0), smooth((4, 8, 8, 8), 1)
    # one common floor for all patches: with none, a batch is the mean of its patches
    apart = torch.stack([local_ncc(a, b, (3, 3, 3), floor=1e-12) for a, b in zip(p, y, strict=True)]).mean()
    torch.testing.assert_close(local_ncc(p, y, (3, 3, 3), floor=1e-12), apart, rtol=1e-6, atol=0)


def test_windows_follow_the_spacing() -> None:
    assert window_voxels(9.0, Grid.centred((20, 20, 20), (1.0, 3.0, 4.5))) == (9, 3, 3)
    assert window_voxels(9.4, Grid.centred((20, 20, 1), (2.0, 0.5, 5.0))) == (5, 19, 1)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="positive number of millimetres"):
            window_voxels(wrong, Grid.centred((4, 4, 4), 1.0))
    with pytest.raises(ValueError, match="odd"):
        local_ncc(torch.zeros(4, 4, 4), torch.zeros(4, 4, 4), (3, 4, 3))


# ---- mutual information


def test_mutual_information_of_independent_and_of_equal_images() -> None:
    generator = torch.Generator().manual_seed(0)
    p, y = (torch.rand(50_000, generator=generator, dtype=torch.float64) for _ in range(2))
    assert 0 <= float(mutual_information(p, y)) < 0.01  # the bias of a finite histogram: bins^2 / (2 n)
    assert float(mutual_information(p, p)) > 2
    # any invertible change of the intensities keeps it, up to the width of the window
    assert float(mutual_information(p, 1 - p)) == pytest.approx(float(mutual_information(p, p)), rel=1e-9)
    assert float(mutual_information(p, 3 * p + 100)) == pytest.approx(float(mutual_information(p, p)), rel=1e-9)
    assert float(mutual_information(p, (2 * p - 1).abs())) > 1


def test_mutual_information_of_a_normal_pair_nears_the_closed_form() -> None:
    """-log(1 - r^2) / 2 for correlation r; the window's smoothing takes a little away."""
    generator = torch.Generator().manual_seed(0)
    p, e = torch.randn(2, 40_000, generator=generator, dtype=torch.float64)
    r = 0.8
    found = float(mutual_information(p, r * p + math.sqrt(1 - r * r) * e, bins=64))
    assert found == pytest.approx(-math.log(1 - r * r) / 2, rel=0.06)


def test_mutual_information_by_hand() -> None:
    """Two far apart values in fixed ranges: log 2 shared nats; range and clamping."""
    p = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert float(mutual_information(p, p, bins=64)) == pytest.approx(math.log(2))
    assert float(mutual_information(p, torch.tensor([0.0, 1.0, 0.0, 1.0]).double())) == pytest.approx(0, abs=1e-12)
    far = torch.tensor([-7.0, 0.0, 1.0, 9.0], dtype=torch.float64)
    assert float(mutual_information(far, p, bins=64, range_p=(0.0, 1.0))) == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="4 bins"):
        mutual_information(p, p, bins=3)


# ---- normalised gradient fields


def test_ngf_of_inverted_and_of_crossing_edges() -> None:
    image = smooth((12, 12, 12), 0)
    assert float(ngf(image, 100 - 3 * image, noise=1e-6)) < 1e-6
    x = torch.arange(8, dtype=torch.float64)
    along, across = x[:, None, None].expand(8, 8, 8), x[None, :, None].expand(8, 8, 8)
    assert float(ngf(along, across)) == 1.0
    # parallel ramps: |grad| = 1 / spacing, eta = noise |grad|: 1 - 1 / (1 + noise^2)^2
    assert float(ngf(along, -2 * along, noise=0.5)) == pytest.approx(1 - 1 / 1.25**2)


def test_ngf_gradients_against_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(20, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    a.data[0] = 0  # also at a vanishing gradient
    weight = torch.rand(20, generator=generator, dtype=torch.float64)
    eta = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda u, v: ngf_distance(u, v, *eta, weight), (a, b))


def test_a_lattice_gradient_is_exact_on_ramps() -> None:
    i, j, k = (torch.arange(n, dtype=torch.float64) * s for n, s in zip((5, 6, 7), SPACING, strict=True))
    values = 2 * i[:, None, None] - j[:, None] + 0.5 * k
    gradient = lattice_gradient(values.expand(2, 5, 6, 7), SPACING)
    torch.testing.assert_close(gradient, torch.tensor([2, -1, 0.5]).double().expand(2, 5, 6, 7, 3))
    assert (lattice_gradient(values[..., :1], SPACING)[..., 2] == 0).all()


# ---- MIND


def test_mind_ignores_affine_intensities_and_names_six_or_four_neighbours() -> None:
    image = smooth((9, 9, 9), 0)
    found = mind(image)
    assert found.shape == (6, 9, 9, 9) and mind(image[..., :1]).shape == (4, 9, 9, 1)
    assert float(found.min()) > 0 and torch.equal(found.amax(dim=0), torch.ones(9, 9, 9).double())
    torch.testing.assert_close(mind(40 - 3 * image), found, rtol=1e-9, atol=1e-12)
    assert float(mind_distance(40 - 3 * image, image)) < 1e-9
    assert mind(torch.stack([image, image])).shape == (6, 2, 9, 9, 9)


def test_mind_by_hand_on_a_ramp() -> None:
    """Along a ramp the two neighbours are equally unlike, across it equally alike: D = (1, 1, 0, 0, 0, 0), V = 1/3."""
    ramp = torch.arange(9.0).double()[:, None, None].expand(9, 9, 9)
    inner = mind(ramp)[:, 4, 4, 4]
    expected = [math.exp(-3)] * 2 + [1.0] * 4
    assert inner.tolist() == pytest.approx(expected)
    turned = ramp.transpose(0, 1).contiguous()
    assert float(mind_distance(ramp, turned)) == pytest.approx(4 * (1 - math.exp(-3)) / 6)


def test_mind_finds_the_place_under_another_contrast() -> None:
    """A second modality: a non-monotonous map of the intensities, with noise."""
    image = smooth((16, 16, 16), 0, sigma=2.0)
    other = torch.cos(1.5 * image) + 0.02 * smooth((16, 16, 16), 9, sigma=0.1)
    costs = [float(mind_distance(torch.roll(other, shift, dims=1), image)) for shift in (-2, -1, 0, 1, 2)]
    assert int(np.argmin(costs)) == 2


def test_mind_counts_only_whole_patches() -> None:
    p, y = smooth((9, 9, 9), 0), smooth((9, 9, 9), 1)
    spoiled = p.clone()
    spoiled[0] = 1.5 * spoiled[0]
    inner = torch.zeros(9, 9, 9).double()
    inner[3:-3, 3:-3, 3:-3] = 1.0
    assert float(mind_distance(p, y, inner)) > 0
    torch.testing.assert_close(mind_distance(p, y, torch.ones(9, 9, 9).double()), mind_distance(p, y))
    with pytest.raises(ValueError, match="too small"):
        mind_distance(p[:4], y[:4])
    with pytest.raises(ValueError, match="positive"):
        mind(p, sigma=0.0)
