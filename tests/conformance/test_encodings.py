"""What every encoding promises: shape, exact first and second derivatives, and a state that can be saved."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import pytest
import torch
from torch import nn

import scanfield.fields.encodings
from scanfield.fields.encodings.frequency import Frequency, GaussianFourier, Identity
from scanfield.fields.encodings.grid import MultiresolutionGrid

GRID = {"levels": 3, "features": 2, "base": 2, "growth": 2.0, "init": 1.0}

# name -> (dims, generator) -> module. Every class has at least one line.
ENCODINGS: dict[str, Callable[[int, torch.Generator], nn.Module]] = {
    "Identity": lambda d, g: Identity(d),
    "Frequency": lambda d, g: Frequency(d, 3),
    "GaussianFourier": lambda d, g: GaussianFourier(d, 6, 0.7, generator=g),
    "MultiresolutionGrid": lambda d, g: MultiresolutionGrid(d, log2_table=16, generator=g, **GRID),
    "MultiresolutionGrid, hashed": lambda d, g: MultiresolutionGrid(d, log2_table=4, generator=g, **GRID),
    "MultiresolutionGrid, smoothstep": lambda d, g: MultiresolutionGrid(
        d, log2_table=16, generator=g, interpolation="smoothstep", **GRID
    ),
}


def make(name: str, dims: int = 2, seed: int = 0) -> nn.Module:
    return ENCODINGS[name](dims, torch.Generator().manual_seed(seed)).double()


def points(dims: int, *shape: int) -> torch.Tensor:
    """Away from the vertices of the grids above, where linear interpolation has kinks."""
    return (
        0.9 * (2 * torch.rand(*shape, dims, generator=torch.Generator().manual_seed(7), dtype=torch.float64) - 1) + 0.01
    )


def test_the_table_names_every_encoding():
    found = set()
    for entry in pkgutil.iter_modules(scanfield.fields.encodings.__path__):
        module = importlib.import_module(f"scanfield.fields.encodings.{entry.name}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and issubclass(cls, nn.Module) and not name.startswith("_"):
                found.add(name)
    assert found == {name.split(",")[0] for name in ENCODINGS}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_shapes(name, dims):
    encoding = make(name, dims)
    for shape in ((5,), (2, 3), (), (0,)):
        out = encoding(points(dims, *shape))
        assert out.shape == (*shape, encoding.out_dims) and out.dtype == torch.float64
    single = encoding.float()(points(dims, 5).float())
    torch.testing.assert_close(single.double(), make(name, dims)(points(dims, 5)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("dims", [2, 3])
def test_derivatives_in_coordinates_and_parameters(name, dims):
    encoding = make(name, dims)
    inputs = [points(dims, 3).requires_grad_(), *(p.detach().requires_grad_() for p in encoding.parameters())]
    names = [key for key, _ in encoding.named_parameters()]

    def value(u: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(encoding, dict(zip(names, parameters, strict=True)), (u,)).sin()

    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(value, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_do_not_depend_on_each_other(name):
    encoding, u = make(name), points(2, 7)
    whole = encoding(u)
    for k in range(7):
        torch.testing.assert_close(encoding(u[k]), whole[k], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_state_dict_is_complete(name):
    one, other, u = make(name, seed=0), make(name, seed=1), points(2, 9)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(u), other(u))


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_generator_decides_everything(name):
    before = torch.get_rng_state()
    assert torch.equal(make(name)(points(2, 9)), make(name)(points(2, 9)))
    assert torch.equal(before, torch.get_rng_state())
