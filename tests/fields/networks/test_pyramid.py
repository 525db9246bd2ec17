"""The encoder: where its voxels lie, what it does not depend on, what it refuses."""

import pytest
import torch

from scanfield.errors import InputError
from scanfield.fields.networks.pyramid import EncoderConfig, ResidualEncoder, convolution, plan_strides

SMALL = EncoderConfig(widths=(8, 12, 16), blocks=2, stem=3, halve_in_stem=False)


def encoder(strides, config=SMALL, seed=0):
    return ResidualEncoder(config, strides, generator=torch.Generator().manual_seed(seed))


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("shape", "halve", "expected"),
    [
        ((18, 26, 17), False, ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))),
        ((217, 9, 182), True, ((2, 2, 2), (2, 2, 2), (2, 1, 2), (2, 1, 2))),
        ((5, 64), True, ((2, 2), (1, 2), (1, 2), (1, 2))),
        ((3, 2), True, ((1, 1), (1, 1), (1, 1), (1, 1))),
    ],
)
def test_axes_are_halved_while_they_have_four_voxels(shape, halve, expected):
    assert plan_strides(shape, (1.0,) * len(shape), 4, halve_first=halve) == expected


def test_thick_slices_are_halved_when_the_other_axes_have_caught_up():
    found = plan_strides((256, 256, 40), (0.8, 0.8, 5.0), 5, halve_first=True)
    assert found == ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan_strides((4, 64), (0.5, 8.0), 4, halve_first=True) == ((2, 1), (1, 2), (1, 2), (1, 2)), "2 voxels stay"


@pytest.mark.parametrize("shape", [(13, 10), (12, 9, 7), (1, 2, 3)])
def test_levels_have_the_sizes_that_their_scales_say(shape):
    strides = plan_strides((16,) * len(shape), (1.0,) * len(shape), 3, halve_first=False)
    net = encoder(strides)
    levels = net(images(2, 1, *shape))
    assert [level.shape[1] for level in levels] == list(net.widths) == [1, 8, 12, 16]
    for level, scale in zip(levels, net.scales, strict=True):
        assert tuple(level.shape[2:]) == tuple(-(-n // s) for n, s in zip(shape, scale, strict=True))
    assert torch.equal(levels[0], images(2, 1, *shape))


def test_voxel_j_of_a_level_lies_at_voxel_s_j_of_the_image():
    layer = convolution(1, 1, 3, (2, 2), torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[..., 1, 1] = 1.0  # the identity, but for the stride
    image = images(1, 1, 9, 8)
    assert torch.equal(layer(image), image[..., ::2, ::2])


def test_an_image_s_features_do_not_depend_on_its_batch():
    net, batch = encoder(((1, 1), (2, 2), (2, 2))), images(3, 1, 12, 12)
    alone = net(batch[1:2])
    for level, own in zip(net(batch), alone, strict=True):
        torch.testing.assert_close(level[1:2], own, rtol=1e-5, atol=1e-5)


def test_brightness_and_contrast_of_an_image_leave_the_features_of_its_inside_alone():
    """The first normalisation removes them, but for zeros beyond the border."""
    config = EncoderConfig(widths=(8,), blocks=1, stem=1, halve_in_stem=False)
    net, image = encoder(((1, 1),), config), images(1, 1, 16, 16)
    torch.testing.assert_close(net(image)[1], net(3 * image + 0)[1], rtol=1e-3, atol=1e-3)


def test_weights_come_from_the_generator_alone():
    strides = ((1, 1), (2, 2), (2, 2))
    torch.manual_seed(0)
    first = encoder(strides).state_dict()
    torch.manual_seed(1)
    again, other = encoder(strides).state_dict(), encoder(strides, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_gradients_reach_every_weight_and_the_image():
    net, image = encoder(((1, 1, 1), (2, 2, 2), (2, 2, 2))), images(1, 1, 8, 8, 8).requires_grad_()
    net(image)[-1].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())
    assert bool(image.grad.abs().sum() > 0)


def test_a_depth_of_eighteen_layers_has_as_many_convolutions():
    net = ResidualEncoder(
        EncoderConfig(),
        plan_strides((96,) * 3, (1.0,) * 3, 5, halve_first=True),
        generator=torch.Generator().manual_seed(0),
    )
    own = [m for name, m in net.named_modules() if isinstance(m, torch.nn.Conv3d) and "shortcut" not in name]
    assert len(own) == 17  # the eighteenth layer of the published network is its classifier
    assert net.scales[-1] == (32, 32, 32)


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(widths=()),
        EncoderConfig(widths=(4, 0)),
        EncoderConfig(widths=(4, 4), blocks=0),
        EncoderConfig(widths=(4, 4), stem=4),
    ],
)
def test_impossible_encoders_are_refused(config):
    with pytest.raises(InputError, match="an encoder needs"):
        encoder(((1, 1),) * len(config.widths), config)


def test_a_stride_for_every_stage_is_needed():
    with pytest.raises(ValueError, match="as many strides"):
        encoder(((1, 1), (2, 2)))


def test_an_image_of_which_one_voxel_is_left_is_refused():
    strides = ((1, 1), (2, 2), (2, 2))
    small = encoder(strides, EncoderConfig(widths=(8, 8, 8), blocks=1, stem=3))
    assert small(images(1, 1, 5, 4))[-1].shape == (1, 8, 2, 1)
    with pytest.raises(InputError, match="an image of 4 x 4 voxels is too small"):
        small(images(1, 1, 4, 4))


def test_strides_that_are_none_are_refused():
    for strides in (((0, 0),) * 3, ((2,),) * 3):
        with pytest.raises(ValueError, match="strides"):
            encoder(strides)
