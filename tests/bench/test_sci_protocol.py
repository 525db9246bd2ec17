"""The protocol's own parts: fair variants, honest comparisons."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.bench.protocols import sci as protocol
from scanfield.data.scan import Scan
from scanfield.metrics.rate import RatePoint
from scanfield.run import Run
from scanfield.space.grid import Grid


def test_every_variant_has_the_same_bytes_and_steps():
    configs = protocol.variants().values()
    assert {c.budget_bytes for c in configs} == {protocol.BUDGET}
    assert len({c.steps + c.tuning_steps for c in configs}) == 1
    assert len({c.points_per_step for c in configs}) == 1


def test_gains_compare_files_of_the_same_size_only():
    ours = {1000: 30.0, 500: 28.0}
    rivals = [RatePoint(990, 29.0), RatePoint(495, 29.5), RatePoint(5000, 50.0)]
    assert protocol._gains(ours, rivals, 2000) == pytest.approx([1.0, -1.5])
    assert protocol._gains(ours, rivals, 600) == pytest.approx([-1.5])


def test_a_small_block_gives_a_table(monkeypatch):
    pytest.importorskip("imagecodecs")
    grid = Grid.centred((32, 32, 16), 1.0)
    x = grid.points().reshape(*grid.shape, 3)
    scan = Scan(
        (400 * torch.sin(x[..., 0] / 6) + 5 * x[..., 1] + 20 * torch.cos(9 * x.square().sum(-1))).round(), grid, "HU"
    )
    block = protocol.Block("small", scan, "int16")
    assert block.original == 32 * 32 * 16 * 2
    monkeypatch.setattr(protocol, "RATIOS", (10, 14, 4000))
    tiny = protocol.sci.Config.tiny()
    monkeypatch.setattr(protocol, "FAST", tiny)
    result = protocol.BenchResult()
    jobs = protocol.table_jobs(block)
    rows_of = {("small", job.title): protocol.filed(job, Run()) for job in jobs}
    protocol._compare(block, rows_of, result)
    rows = {(row["ratio"], row["row"]): row for row in result.table if "ratio" in row}
    for ratio in (10, 14):
        own = rows[ratio, "SCI"]
        assert own["bytes"] <= 1.02 * block.original / ratio
        assert all(row["bytes"] <= own["bytes"] for (r, _), row in rows.items() if r == ratio)
    assert any("4000:1" in note for note in result.notes)
    assert any(row["row"] == "SCI against SPERR" for row in result.table)


def test_codecs_are_rounded_into_the_range():
    scan = Scan(torch.tensor([[[0.0, 10.0]], [[5.0, 2.0]]]), Grid.centred((2, 1, 2), 1.0))
    block = protocol.Block("tiny", scan, "uint8")
    assert protocol._rounded(np.array([-3.0, 4.4, 99.0]), block).tolist() == [0.0, 4.0, 10.0]


@pytest.mark.data
@pytest.mark.parametrize("maker", ["chest", "abdomen", "brain", "ovule", "nerve_cord"])
def test_blocks_hold_whole_numbers_of_their_type(development_data, maker):
    block = getattr(protocol, maker)()
    assert torch.equal(block.scan.values, block.scan.values.round())
    info = np.iinfo(block.kind)
    assert info.min <= block.scan.values.min() < block.scan.values.max() <= info.max
    assert block.scan.grid.size >= 128 * 128 * 20
