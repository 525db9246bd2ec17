"""Weights: exact to the quantiser, groups, and bits where they matter."""

from __future__ import annotations

import pytest
import torch

from scanfield.codec.container import Section
from scanfield.codec.quantise import step_of
from scanfield.codec.weights import (
    choose_rungs,
    coarsened,
    decode_weights,
    encode_weights,
    exact_rungs,
    groups_of,
    quantised,
    rungs_for_bits,
    shapes_of,
    size_of,
)
from scanfield.errors import InputError

GENERATOR = torch.Generator().manual_seed(1)
STATE = {
    "blocks.0.layers.0.weight": torch.randn(30, 3, generator=GENERATOR),
    "blocks.0.layers.0.bias": torch.zeros(30),
    "blocks.1.layers.0.weight": 5 * torch.randn(20, 3, generator=GENERATOR),
    "blocks.1.layers.0.bias": 1 + 0.01 * torch.randn(20, generator=GENERATOR),
    "empty": torch.zeros(0, 4),
    "count": torch.tensor([3, -70_000, 2**33]),
    "flag": torch.tensor(True),
}


@pytest.mark.parametrize("tail", [0, 1, 3])
@pytest.mark.parametrize("bits", [3, 8, 16])
def test_states_come_back_to_half_a_step(tail, bits):
    rungs = rungs_for_bits(STATE, bits, tail=tail)
    back = decode_weights(encode_weights(STATE, rungs, tail=tail), shapes_of(STATE))
    assert list(back) == list(STATE)
    for group, names in groups_of(STATE, tail).items():
        for name in names:
            assert back[name].shape == STATE[name].shape and back[name].dtype == torch.float32
            if group in rungs and STATE[name].numel():
                assert (back[name] - STATE[name]).abs().max() <= step_of(rungs[group]) / 2 * 1.00001
    assert torch.equal(back["count"], STATE["count"]) and torch.equal(back["flag"], STATE["flag"])
    assert all(torch.equal(back[n], t) for n, t in quantised(STATE, rungs, tail=tail).items())


def test_groups_share_tables():
    assert list(groups_of(STATE, 3)) == ["layers.0.weight", "layers.0.bias", "empty"]
    assert len(groups_of(STATE)) == 5
    equal = {f"blocks.{k}.weight": torch.randn(50, generator=GENERATOR) for k in range(40)}
    assert size_of(equal, rungs_for_bits(equal, 6, tail=1), tail=1) < 0.9 * size_of(equal, rungs_for_bits(equal, 6))


def test_the_same_bytes_every_time():
    rungs = rungs_for_bits(STATE, 8)
    assert encode_weights(STATE, rungs) == encode_weights(dict(STATE), dict(rungs))


def test_bits_go_where_errors_matter():
    """D = sum_g a_g |w - q|^2: each fourfold weight deserves one bit more (reverse water-filling)."""
    state = {name: torch.randn(4000, generator=torch.Generator().manual_seed(k)) for k, name in enumerate("abc")}
    importance = {"a": 1.0, "b": 16.0, "c": 256.0}

    def distortion(changed: dict[str, torch.Tensor]) -> float:
        return float(sum(importance[n] * (changed[n] - state[n]).square().sum() for n in state))

    budget = 3 * 4000 * 5 // 8
    rungs = choose_rungs(state, budget, distortion)
    assert size_of(state, rungs) <= budget
    assert 6 <= rungs["a"] - rungs["b"] <= 10 and 6 <= rungs["b"] - rungs["c"] <= 10  # 8 rungs are two bits
    equal = next(r for r in range(-40, 0) if size_of(state, dict.fromkeys(state, r)) <= budget)
    assert distortion(quantised(state, rungs)) < 0.5 * distortion(quantised(state, dict.fromkeys(state, equal)))


def test_budgets_that_cannot_be_met_say_what_can():
    with pytest.raises(InputError, match=r"weights do not fit 20 bytes(.|\n)*at least \d+ bytes"):
        choose_rungs(STATE, 20, lambda state: 0.0)


def test_damage_is_one_error():
    sections = encode_weights(STATE, rungs_for_bits(STATE, 8))
    shapes = shapes_of(STATE)
    with pytest.raises(InputError, match="no weights"):
        decode_weights(sections[1:], shapes)
    with pytest.raises(InputError, match="lacks numbers"):
        decode_weights(sections[:1], shapes)
    with pytest.raises(InputError, match=r"damaged|truncated"):
        decode_weights([Section("weights", 1, sections[0].payload[:40]), sections[1]], shapes)
    other = {**shapes, "blocks.0.layers.0.weight": (torch.float32, (31, 3))}
    with pytest.raises(InputError, match="damaged"):
        decode_weights(sections, other)
    with pytest.raises(InputError, match="step that does not exist"):
        decode_weights([Section("weights", 1, bytes([0, 255, 255, 3]) + sections[0].payload[2:]), sections[1]], shapes)


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="NaN"):
        encode_weights({"w": torch.tensor([float("nan")])}, {"w": 0})


def test_exact_rungs_are_the_coarsest_also_where_only_one_step_occurs():
    """0, step and -step: two bits would do with a step up to 1.5 times finer."""
    for rung in (-9, -8, -7, -6):
        state = {"w": torch.tensor([0.0, 1.0, -1.0, 1.0] * 20) * step_of(rung)}
        assert exact_rungs(state) == {"w": rung}


def test_groups_of_one_size_are_coarsened_in_turns():
    draws = torch.Generator().manual_seed(5)
    state = {f"w.{k}": torch.randn(500, generator=draws) for k in range(4)}
    fine = rungs_for_bits(state, 8)
    found = coarsened(state, fine, size_of(state, fine) * 3 // 4)
    steps = [found[name] - fine[name] for name in state]
    assert max(steps) - min(steps) <= 1 and min(steps) > 0
