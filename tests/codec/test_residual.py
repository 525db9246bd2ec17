"""Bounds that hold exactly, whatever the decoder's arithmetic does in its last digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scanfield.codec import residual as residual_module
from scanfield.codec.residual import RESIDUAL, TIES, decode_residual, encode_residual, step_of_bound
from scanfield.errors import InputError
from scanfield.methods.compression import sci
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction, Spec

GRID = Grid.centred((14, 12, 10), 0.5)


class Ramp(nn.Module):
    """2 x + y + 1/4: with voxels of half a millimetre, half of its values lie exactly between two whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([2.0, 1.0, 0.0]))

    def forward(self, x):
        return x @ self.slope.to(x.dtype)[:, None] + 0.25


def ramp() -> Reconstruction:
    return Reconstruction("sci", sci.Config(), Spec(Domain.of_grid(GRID), GRID, "HU"), Ramp())


def image(kind: str, seed: int = 0) -> np.ndarray:
    values = 40 * np.random.default_rng(seed).normal(size=GRID.shape)
    return values.round().astype("int16") if kind == "int16" else values.astype("float32")


def coded(values: np.ndarray, bound: float, result: Reconstruction):
    facts = {"type": values.dtype.name, "low": values.min().item(), "high": values.max().item()}
    sections, more = encode_residual(result, values, bound, facts)
    return {section.name: section.payload for section in sections}, facts | more


@pytest.mark.parametrize("bound", [0.0, 1.0, 2.7])
def test_whole_numbers_keep_the_bound(bound):
    values, result = image("int16"), ramp()
    payloads, facts = coded(values, bound, result)
    back = decode_residual(result, payloads, facts, where="a")
    assert np.abs(back - values).max() <= int(bound) and (back == back.round()).all()


@pytest.mark.parametrize("bound", [2e-5, 0.013, 3.0])
def test_real_numbers_keep_the_bound_after_rounding_to_float32(bound):
    values, result = image("float32", 3), ramp()
    payloads, facts = coded(values, bound, result)
    back = np.clip(decode_residual(result, payloads, facts, where="a"), facts["low"], facts["high"]).astype("float32")
    assert np.abs(back.astype(np.float64) - values.astype(np.float64)).max() <= bound


def machine(error: float, monkeypatch) -> None:
    """A machine whose double precision errs by up to `error`."""
    exact = residual_module._values
    noise = np.random.default_rng(5).uniform(-error, error, GRID.shape)
    monkeypatch.setattr(residual_module, "_values", lambda result, precision: exact(result, precision) + noise)


def test_ties_decode_alike_on_a_machine_that_rounds_differently(monkeypatch):
    values, result = image("int16"), ramp()
    payloads, facts = coded(values, 0.0, result)
    assert facts["ties"] == GRID.size // 2 and TIES in payloads
    machine(1e-12, monkeypatch)
    assert np.array_equal(decode_residual(result, payloads, facts, where="a"), values)


def test_a_machine_that_is_far_off_is_noticed(monkeypatch):
    values, result = image("int16"), ramp()
    payloads, facts = coded(values, 0.0, result)
    machine(0.6, monkeypatch)
    with pytest.raises(InputError, match="another field"):
        decode_residual(result, payloads, facts, where="a")


def test_few_voxels_of_a_real_field_are_listed():
    config = sci.Config.tiny()
    x = GRID.points().reshape(*GRID.shape, 3)
    from scanfield.data.scan import Scan
    from scanfield.run import Run

    scan = Scan((300 * torch.sin(x[..., 0]) + 50 * x[..., 1]).round(), GRID, "HU")
    result = sci.fit(config, scan, Run())
    _, facts = coded(scan.values.numpy().astype("int16"), 0.0, result)
    assert facts.get("ties", 0) <= 2


@pytest.mark.parametrize(
    ("bound", "whole", "match"),
    [
        (-1.0, True, "cannot be -1"),
        (float("nan"), True, "cannot be"),
        (0.0, False, "with fractions"),
        (1e-6, False, "finer"),
    ],
)
def test_impossible_bounds(bound, whole, match):
    with pytest.raises(InputError, match=match):
        step_of_bound(bound, whole=whole, low=-30.0, high=100.0)


@pytest.mark.parametrize("change", [{"step": -1.0}, {"ties": 10**9}, {"ties": "x"}, {"crc": None}])
def test_damaged_facts(change):
    payloads, facts = coded(image("int16"), 0.0, ramp())
    with pytest.raises(InputError, match="damaged"):
        decode_residual(ramp(), payloads, facts | change, where="a")
    with pytest.raises(InputError, match="damaged"):
        decode_residual(ramp(), {name: p for name, p in payloads.items() if name != RESIDUAL}, facts, where="a")
