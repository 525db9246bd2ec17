"""What makes it SCI: the cut, the allocation, funnels of a given size, and a file that keeps its budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scanfield.codec.budget import count
from scanfield.codec.field_file import read_field, weight_budget, write_field
from scanfield.codec.partition import boxes_of
from scanfield.codec.weights import exact_rungs
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.blocks import Constant
from scanfield.methods.compression import sci
from scanfield.metrics.image import psnr_db
from scanfield.run import Run
from scanfield.space.grid import Grid

GRID = Grid.centred((32, 32, 16), 1.5)


def textured() -> Scan:
    """Smooth everywhere, with fine texture in one corner."""
    x = GRID.points().reshape(*GRID.shape, 3)
    values = 300 * torch.exp(-x.square().sum(-1) / 400)
    values[:16, :16] += 200 * torch.sin(2.4 * x[:16, :16, :, 0]) * torch.sin(2.1 * x[:16, :16, :, 1])
    return Scan(values, GRID, "HU")


CONFIG = replace(
    sci.Config.tiny(), budget_bytes=3000, steps=250, points_per_step=4000, blocks=4, allocation="concentration"
)


@pytest.fixture(scope="module")
def result():
    return sci.fit(CONFIG, textured(), Run(seed=0))


def test_texture_gets_the_weights():
    """|x| / D: equal blocks, and the one with the broad spectrum has the widest network."""
    spec = sci.spec_of(replace(CONFIG, partition="regular"), textured())
    boxes = boxes_of(spec.facts["cut"], GRID.shape)
    assert len(boxes) == 4
    sizes = [count([3, first, hidden, 1]) for first, hidden in spec.facts["widths"]]
    assert sizes[0] > 1.3 * max(sizes[1:])
    equal = sci.spec_of(replace(CONFIG, partition="regular", allocation="equal"), textured()).facts["widths"]
    assert all(pair == equal[0] for pair in equal)


@pytest.mark.parametrize("bits", [5.0, 8.0, 16.0])
def test_weights_use_the_budget(bits):
    config = replace(CONFIG, bits=bits)
    field = sci.build(config, sci.spec_of(config, textured()))
    numbers = sum(p.numel() for p in field.parameters())
    assert 0.75 * 3000 < numbers * bits / 8 + 500 < 3000 * 1.02


def test_the_file_keeps_its_budget_and_is_the_result(result, tmp_path):
    rungs = exact_rungs(result.field.state_dict(), tail=sci.SHARED_PARTS)
    assert rungs is not None, "the fitted weights are those of the file"
    report = write_field(tmp_path / "a.sfz", result, rungs=rungs, tail=sci.SHARED_PARTS)
    assert 0.93 * 3000 < report.total <= 3000
    back = read_field(tmp_path / "a.sfz")
    assert torch.equal(back.render(), result.render())


def test_it_learns_the_volume(result):
    assert psnr_db(result.render(), textured().values) > 22


def test_tuning_after_quantisation_helps():
    coarse = replace(CONFIG, bits=3.0)
    untuned = sci.fit(replace(coarse, tuning_steps=0), textured(), Run(seed=0))
    tuned = sci.fit(replace(coarse, tuning_steps=100), textured(), Run(seed=0))
    gain = psnr_db(tuned.render(), textured().values) - psnr_db(untuned.render(), textured().values)
    assert gain > 0.5


def test_blocks_without_weights_are_constants_at_their_mean():
    values = torch.full(GRID.shape, -1000.0)
    values[:16, :16] += textured().values[:16, :16]
    scan = Scan(values, GRID, "HU")
    config = replace(CONFIG, partition="regular", budget_bytes=640, bits=16.0)
    result = sci.fit(config, scan, Run(seed=0))
    constant = [k for k, block in enumerate(result.field.blocks) if isinstance(block, Constant)]
    assert constant, "140 bytes of weights do not hold four networks"
    box = result.field.boxes[constant[-1]]
    window = tuple(slice(a, b) for a, b in box)
    step = sci.LEVELS * result.spec.scale
    assert abs(float(result.render()[window].mean() - values[window].mean())) <= step


def test_masked_voxels_are_not_fitted():
    scan = textured()
    mask = torch.zeros(GRID.shape, dtype=torch.bool)
    mask[:, :20] = True
    spoilt = scan.values.clone()
    spoilt[~mask] = 123.0
    a = sci.fit(CONFIG, replace(scan, mask=mask), Run(seed=0))
    b = sci.fit(CONFIG, replace(scan, values=spoilt, mask=mask), Run(seed=0))
    cut = replace(b.spec, facts=a.spec.facts)
    assert cut.facts["offset"] == a.spec.facts["offset"]  # the range is in the mask
    assert psnr_db(a.render(), scan.values, mask) > 20


@pytest.mark.parametrize("preset", [sci.Config(), sci.Config.fast()])
def test_presets_describe_fields_that_can_be_built(preset):
    """Two bytes a voxel over 64 is less than the header here: a budget of one's own."""
    spec = sci.spec_of(replace(preset, budget_bytes=4000), textured())
    assert torch.isfinite(sci.build(preset, spec)(GRID.points(0, 50))).all()
    with pytest.raises(InputError, match="too few"):
        sci.spec_of(preset, textured())


def test_what_cannot_be_compressed_is_refused():
    scan = textured()
    with pytest.raises(InputError, match="constant"):
        sci.fit(CONFIG, Scan(torch.ones(GRID.shape), GRID), Run())
    with pytest.raises(InputError, match="one channel"):
        sci.fit(CONFIG, Scan(torch.ones(*GRID.shape, 2), GRID), Run())
    with pytest.raises(InputError, match="too few"):
        sci.fit(replace(CONFIG, budget_bytes=300), scan, Run())


def test_slices_are_volumes_of_one_voxel():
    flat = Grid.centred((48, 40, 1), 1.0)
    x = flat.points().reshape(*flat.shape, 3)
    scan = Scan(100 * torch.sin(x[..., 0] / 5) * torch.cos(x[..., 1] / 7), flat)
    result = sci.fit(replace(CONFIG, budget_bytes=2000), scan, Run(seed=0))
    assert result.spec.domain.dims == 2
    assert psnr_db(result.render(), scan.values) > 25
    assert weight_budget(result, 2000) > 0


def test_weights_go_where_the_largest_coefficients_are():
    """Noise in two blocks, a hundred times stronger in the second: the N largest coefficients all lie there."""
    grid = Grid.centred((32, 16, 16), 1.0)
    values = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0))
    values[16:] *= 100
    config = replace(CONFIG, partition="regular", blocks=2, bits=6.5, budget_bytes=2000, allocation="coefficients")
    (faint, _), (strong, _) = sci.spec_of(config, Scan(values, grid)).facts["widths"]
    assert faint == 0 < strong


def test_networks_that_learnt_nothing_are_fitted_again(monkeypatch):
    """One of four networks starts dead: a restart revives it, and leaves the others as they were."""
    build = sci.build

    def with_a_dead_network(*arguments):
        field = build(*arguments)
        dead = next(block for block in field.blocks if not isinstance(block, Constant))
        with torch.no_grad():
            for parameter in dead.parameters():
                parameter.zero_()
        return field

    monkeypatch.setattr(sci, "build", with_a_dead_network)
    config = replace(CONFIG, partition="regular", tuning_steps=0)
    scan = textured()
    once = sci.fit(replace(config, restarts=0), scan, Run(seed=0))
    again = sci.fit(replace(config, restarts=1), scan, Run(seed=0))
    stages = [log.stage for log in again.logs]
    assert stages == ["fit", "again 1"]
    errors = []
    for result in (once, again):
        squares = (result.render() - scan.values).square()
        errors.append([float(squares[tuple(slice(a, b) for a, b in box)].mean()) for box in result.field.boxes])
    assert errors[1][0] < 0.9 * errors[0][0], errors


def test_a_restart_that_is_no_better_changes_nothing():
    scan = textured()
    field = sci.build(CONFIG, sci.spec_of(CONFIG, scan), Run(seed=0).generator("weights"))
    blocks = sci._Blocks(field, scan, Run(seed=0))
    blocks.start_at_means()
    before, errors = blocks.states(), blocks.errors()
    blocks.redraw(Run(seed=0).generator("weights 1"))
    assert any(not torch.equal(a[k], b[k]) for a, b in zip(before, blocks.states(), strict=True) for k in a)
    blocks.keep_better(before, [0.0] * len(errors))
    assert all(torch.equal(a[k], b[k]) for a, b in zip(before, blocks.states(), strict=True) for k in a)
