"""An image becomes a field's weights: it is learnt, where it is known only, and the run can be continued."""

import numpy as np
import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.encodings.frequency import GaussianFourier
from scanfield.fields.field import Field, read_out
from scanfield.fields.heads import LinearHead
from scanfield.fields.networks.siren import Siren
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig
from scanfield.fitting.regimes.staged import embed_image
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid

GRID = Grid.centred((20, 16, 1), (2.0, 2.5, 3.0))
X = GRID.points().reshape(*GRID.shape, 3)
IMAGE = Scan(0.02 * torch.exp(-(X[..., :2] - torch.tensor([5.0, -3.0])).square().sum(-1) / 150), GRID, "1/mm")


def field():
    generator = torch.Generator().manual_seed(1)
    encoding = GaussianFourier(2, 16, 1.0, generator=generator, factor="pi")
    network = Siren([32, 32, 32, 1], omegas=[10.0, 10.0], generator=generator)
    return Field(Domain.of_grid(GRID), encoding, network, LinearHead(0.02))


def embedded(image, *, steps=150, run=None, **options):
    found = field()
    groups = [ParameterGroup("network", list(found.network.parameters()), 2e-3)]
    log = embed_image(found, image, groups, FitConfig(steps), run or Run(seed=2), **options)
    return found, log


@pytest.mark.parametrize("points", [None, 64])
def test_the_field_becomes_the_image(points):
    found, log = embedded(IMAGE, points_per_step=points)
    error = (read_out(found, GRID) - IMAGE.values).square().mean() / IMAGE.values.square().mean()
    assert float(error) < 0.01
    assert log.stage == "prior" and log.history[-1]["loss"]["prior image"] < 0.1 * log.history[0]["loss"]["prior image"]


def test_voxels_outside_the_mask_do_not_count():
    mask = torch.ones(GRID.shape, dtype=torch.bool)
    mask[:, :8] = False
    spoilt = torch.where(mask, IMAGE.values, 5.0)
    inside = embedded(Scan(spoilt, GRID, "1/mm", mask))[0]
    assert float((read_out(inside, GRID) - IMAGE.values)[mask].abs().max()) < 0.005


def test_held_out_data_are_watched_and_an_interrupted_stage_goes_on(tmp_path):
    first, log = embedded(IMAGE, steps=40, points_per_step=32, held_out=lambda: 7.0)
    assert log.history[-1]["held_out"] == 7.0
    run = Run(tmp_path, seed=2)
    half, seen = field(), 0

    def stop() -> float:
        nonlocal seen
        seen += 1
        run.stop.set()
        return 1.0

    groups = [ParameterGroup("network", list(half.network.parameters()), 2e-3)]
    embed_image(half, IMAGE, groups, FitConfig(40, check_every=20), run, points_per_step=32, held_out=stop)
    assert seen == 1
    again = field()
    groups = [ParameterGroup("network", list(again.network.parameters()), 2e-3)]
    log = embed_image(again, IMAGE, groups, FitConfig(40), Run(tmp_path, seed=2, resume=True), points_per_step=32)
    assert log.steps == 40
    assert np.array_equal(read_out(again, GRID), read_out(first, GRID))


def test_several_channels_are_refused():
    with pytest.raises(InputError, match="one channel"):
        embedded(Scan(torch.zeros(*GRID.shape, 2), GRID))
