"""Integers by rate and distortion: never worse than rounding, and within the bytes."""

from __future__ import annotations

import math

import pytest
import torch

from scanfield.codec.refine import coded_latents, price_of, refined
from scanfield.codec.weights import exact_rungs, size_of
from scanfield.errors import InputError

DRAWS = torch.Generator().manual_seed(0)
SLOPES = [4.0, 1.0, 0.01]
LATENTS = {f"z.{k}": torch.randn(2000, generator=DRAWS) * scale for k, scale in enumerate((1.0, 0.5, 0.2))}
VALUES = torch.stack(list(LATENTS.values()), dim=-1)


def errors(values: torch.Tensor) -> torch.Tensor:
    return (torch.tensor(SLOPES) * (values - VALUES).square()).sum(dim=1)


def entropy_bits(codes: torch.Tensor) -> float:
    total = 0.0
    for column in codes.T:
        chance = torch.bincount(column - column.min()).double() / len(column)
        total -= len(column) * float((chance * chance.clamp(min=1e-300).log2()).sum())
    return total


def mean_error(found: dict[str, torch.Tensor]) -> float:
    return float(errors(torch.stack(list(found.values()), dim=-1)).mean())


def test_a_price_of_nothing_gives_the_nearest_integers_also_from_a_wrong_start():
    steps = torch.tensor([0.3, 0.4, 0.2])
    nearest = (VALUES / steps).round().long()
    assert torch.equal(refined(nearest, steps, errors, 0.0), nearest)
    moved = nearest + torch.tensor([1, -1, 0])
    assert torch.equal(refined(moved, steps, errors, 0.0), nearest)


def test_error_and_bits_together_fall():
    steps = torch.tensor([0.5, 1.0, 1.0])
    price = price_of(SLOPES[0], 0.5)
    before = (VALUES / steps).round().long()
    after = refined(before, steps, errors, price, sweeps=2)
    assert entropy_bits(after) < 0.95 * entropy_bits(before)

    def cost(codes):
        return float(errors(codes * steps).sum()) + price * entropy_bits(codes)

    assert cost(after) < cost(before)
    dear = refined(before, steps, errors, 10 * price, sweeps=2)
    assert entropy_bits(dear) < entropy_bits(after)


def test_the_price_is_the_slope_of_distortion_over_rate():
    """D = s step^2 / 12 and one bit more halves the step."""

    def distortion(bits):
        return 3.0 * (0.1 * 2**-bits) ** 2 / 12

    slope = (distortion(-1e-5) - distortion(1e-5)) / 2e-5
    assert price_of(3.0, 0.1) == pytest.approx(slope, rel=1e-6)
    assert price_of(1.0, 1.0) == pytest.approx(math.log(2) / 6)
    with pytest.raises(ValueError, match="negative"):
        refined(torch.zeros(1, 1).long(), torch.ones(1), lambda z: z[:, 0], -1.0)


@pytest.mark.parametrize("sweeps", [0, 1, 2])
@pytest.mark.parametrize("most", [900, 1500])
def test_the_bytes_are_kept_and_used(most, sweeps):
    found = coded_latents(LATENTS, lambda: SLOPES, errors, most=most, bits=5, sweeps=sweeps)
    rungs = exact_rungs(found)
    assert rungs is not None, "the latents are those of the file"
    assert 0.75 * most < size_of(found, rungs) <= most


def test_refining_is_better_at_equal_bytes():
    plain, fine = (coded_latents(LATENTS, lambda: SLOPES, errors, most=1000, bits=5, sweeps=s) for s in (0, 2))
    assert mean_error(fine) < mean_error(plain)


def test_bits_decide_without_bytes():
    sizes = []
    for bits in (4, 8):
        found = coded_latents(LATENTS, lambda: SLOPES, errors, most=None, bits=bits, sweeps=0)
        for name, z in LATENTS.items():
            largest = float(z.abs().max())
            assert float((found[name] - z).abs().max()) <= 1.2 * largest / 2 ** (bits - 1)
        sizes.append(size_of(found, exact_rungs(found)))
    assert sizes[0] < sizes[1]


def test_too_few_bytes_are_refused():
    with pytest.raises(InputError, match="do not fit 15 bytes"):
        coded_latents(LATENTS, lambda: SLOPES, errors, most=15, bits=5, sweeps=0)
