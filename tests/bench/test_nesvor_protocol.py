"""The protocol's data, rows and checks, with fits too short to mean anything."""

from dataclasses import replace

import pytest
import torch

from scanfield.baselines import stacks as rivals
from scanfield.bench.protocol import BenchResult
from scanfield.bench.protocols import nesvor as protocol
from scanfield.data.scan import Scan
from scanfield.fields.image import ImageField
from scanfield.methods.reconstruction import nesvor
from scanfield.operators.simulate_stacks import StackScanOptions
from scanfield.operators.slices import SliceState
from scanfield.operators.smooth import smoothed
from scanfield.run import Run
from scanfield.space.grid import Grid


def case(still: bool = False) -> protocol.Case:
    grid = Grid.centred((30, 30, 30), 2.0)
    inside = ((grid.points().reshape(*grid.shape, 3) / torch.tensor([25.0, 20.0, 17.0])) ** 2).sum(-1) < 1
    clouds = smoothed(torch.randn(grid.shape, generator=torch.Generator().manual_seed(4)), grid, 4.0)
    volume = Scan((200 + 80 * clouds / clouds.std()).clamp(min=30) * inside, grid)
    return protocol.simulated("small", volume, StackScanOptions(thickness_mm=5.0, in_plane_mm=2.0, seed=1), still)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(nesvor.Config.tiny(), steps=3)
    monkeypatch.setattr(nesvor.Config, "fast", staticmethod(lambda: tiny))
    mean = rivals.BASELINES["mean"]
    monkeypatch.setattr(protocol, "BASELINES", {"mean": mean, "classical": replace(mean, label="classical")})


def test_the_truth_scores_perfectly() -> None:
    """True poses and the true volume: no pose error, and a PSNR that interpolation alone limits."""
    small = case()
    assert 1 <= int(small.outliers.sum()) <= 8
    n = small.slices.count
    state = SliceState(small.poses, torch.ones(n), torch.where(small.outliers, 0.1, 1.0))
    result = BenchResult()
    image = ImageField(small.volume.values, small.volume.grid)
    row = protocol._row(small, "truth", image, state, 1.0, result)
    assert row["psnr_db"] > 60 and row["displacement_mm"] < 1e-3 and row["outlier_auc"] == 1.0
    moved = replace(state, poses=small.slices.initial)
    assert protocol._row(small, "header", image, moved, 1.0, result)["displacement_mm"] > 1.0


@pytest.mark.usefixtures("quick")
def test_every_row_and_check_of_a_moving_case() -> None:
    result = BenchResult()
    protocol._moving(case(), Run(), result)
    names = [row["row"] for row in result.table]
    assert names == ["fast", "fast, poses fixed", "fast, one variance", "mean of stacks", "classical"]
    assert len(result.checks) == 8 and all(check.name.startswith("small: ") for check in result.checks)
    assert all(0 <= row["outlier_auc"] <= 1 for row in result.table)


@pytest.mark.usefixtures("quick")
def test_the_point_spread_is_compared_at_rest() -> None:
    result, small = BenchResult(), case(still=True)
    assert torch.allclose(small.poses, small.slices.initial, atol=1e-5) and not small.outliers.any()
    protocol._still(small, Run(), result)
    assert [row["row"] for row in result.table] == ["fast, at rest", "fast, at rest, no point spread"]
    assert "outlier_auc" not in result.table[0] and result.checks[0].unit == "dB"


def test_a_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STEP_PIXELS", 32)
    monkeypatch.setattr(protocol, "STEP_POINTS", 4)
    result = BenchResult()
    protocol._speed(case(), Run(), result)
    assert result.table[0]["seconds"] > 0 and result.checks[0].sense == "<="
