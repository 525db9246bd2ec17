"""The voxel U-Net: its shapes, what it learns, and how its probabilities are brought to other grids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from scanfield.baselines import unet
from scanfield.data.cohort import Cohort, read_cohort
from scanfield.data.nifti import write_nifti
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.networks.pyramid import EncoderConfig, plan_strides
from scanfield.fitting.crops import CropConfig
from scanfield.losses.segmentation import mean_dice
from scanfield.run import Run
from scanfield.space.grid import Grid

ENCODER = EncoderConfig(widths=(8, 8, 16), blocks=1, stem=3, halve_in_stem=False)
CONFIG = unet.Config(
    encoder=ENCODER,
    crops=CropConfig(size=64, interior=1, boundary=1, background=1),
    batch=4,
    steps=60,
    learning_rate=5e-3,
    final_rate=0.02,
    weight_decay=0.01,
    clip_norm=1.0,
    validate_every=20,
)
GRID = Grid.centred((24, 22, 1), (1.5, 1.5, 4.0))


def person(seed: int, grid: Grid = GRID) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    centre = torch.cat([8 * torch.rand(2, generator=draws) - 4, torch.zeros(1)])
    classes = ((grid.points() - centre).norm(dim=1) < 9).int()
    values = 100.0 * classes + 10 * torch.randn(grid.size, generator=draws)
    return values.reshape(grid.shape), classes.to(torch.uint8).reshape(grid.shape)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Cohort:
    folder: Path = tmp_path_factory.mktemp("cohort")
    lines = ["path,label,subject,split"]
    for seed in range(6):
        values, classes = person(seed)
        write_nifti(folder / f"{seed}.nii.gz", values, GRID)
        write_nifti(folder / f"{seed}_label.nii.gz", classes, GRID)
        lines.append(f"{seed}.nii.gz,{seed}_label.nii.gz,p{seed},{'validation' if seed == 5 else 'train'}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv")


@pytest.fixture(scope="module")
def trained(people) -> unet.TrainedUNet:
    return unet.train(CONFIG, people, Run())


VALUES, CLASSES = person(77)
SCAN = Scan(VALUES, GRID)


@pytest.mark.parametrize("shape", [(17, 12), (13, 8, 9), (5, 2, 7)])
@pytest.mark.parametrize("halve", [True, False])
def test_every_voxel_gets_logits_whatever_the_size(shape, halve):
    strides = plan_strides((16,) * len(shape), (1.0,) * len(shape), 3, halve_first=halve)
    net = unet.UNet(ENCODER, strides, 4, generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    logits = net(images)
    assert tuple(logits.shape) == (2, 4, *shape)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_upsampled_voxels_lie_where_the_encoder_s_do():
    """A transposed convolution puts voxel j at voxels s j .. s j + s - 1: the first of them is its place."""
    up = unet._up(1, 1, (2, 2), torch.Generator().manual_seed(0))
    with torch.no_grad():
        up.weight.zero_()
        up.weight[..., 0, 0] = 1.0
    coarse = torch.randn(1, 1, 4, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(up(coarse)[..., ::2, ::2], coarse)


def test_it_learns_people_it_has_not_seen(trained):
    ask = unet.classifier(trained, SCAN, "cpu", upsampling="linear")
    assert mean_dice(ask(GRID.points()).argmax(dim=1), CLASSES.long().reshape(-1)) > 0.9
    assert trained.log.best_held_out < 0.15


def test_between_voxels_probabilities_are_interpolated(trained):
    at_voxels = unet.classifier(trained, SCAN, "cpu", upsampling="nearest")(GRID.points()).exp()
    p = at_voxels[:, 1].reshape(GRID.shape[:2]).numpy()
    index = np.random.default_rng(0).uniform(0, 20, size=(50, 2))
    voxel = torch.from_numpy(np.concatenate([index, np.zeros((50, 1))], axis=1))
    x = GRID.to_world(voxel).float()
    linear = unet.classifier(trained, SCAN, "cpu", upsampling="linear")(x).exp()
    np.testing.assert_allclose(linear[:, 1], map_coordinates(p, index.T, order=1), atol=1e-3)
    torch.testing.assert_close(linear.sum(dim=1), torch.ones(50))
    nearest = unet.classifier(trained, SCAN, "cpu", upsampling="nearest")(x).exp()
    rounded = np.rint(index).astype(int)
    np.testing.assert_allclose(nearest[:, 1], p[rounded[:, 0], rounded[:, 1]], atol=1e-4)


def test_the_seed_decides_everything(people):
    short = replace(CONFIG, steps=4)
    first, again, other = (unet.train(short, people, Run(seed=seed)).network.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["last.weight"], other["last.weight"])


def test_other_axes_are_refused(trained):
    with pytest.raises(InputError, match="extends along"):
        unet.classifier(trained, Scan(torch.randn(6, 6, 6), Grid.centred((6, 6, 6), 1.0)), "cpu", upsampling="linear")


def test_it_sees_one_resolution(people):
    with pytest.raises(InputError, match="one resolution"):
        unet.train(replace(CONFIG, crops=replace(CONFIG.crops, detail=2)), people, Run())
