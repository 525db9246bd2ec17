"""The Helmholtz example: the equation holds for its closed form, and a tiny fit lowers the residual."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.special import j0, y0

from scanfield.run import Run


def example(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


helmholtz = example("helmholtz")


class ClosedForm(torch.nn.Module):
    """(i / 4) H0^(2)(k r) through its power-free asymptotics: here by torch's own Bessel functions."""

    def __init__(self, wavenumber: float) -> None:
        super().__init__()
        self.wavenumber = torch.nn.Parameter(torch.tensor(wavenumber, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = (self.wavenumber * x[:, :2].norm(dim=-1)).detach().numpy()
        strength = np.exp(-((float(self.wavenumber) * helmholtz.SIGMA_MM) ** 2) / 2)
        # i/4 (J0 - i Y0) = Y0 / 4 + i J0 / 4
        return torch.tensor(strength / 4 * np.stack([y0(z), j0(z)], axis=-1))


def test_the_closed_form_has_no_error_and_the_source_unit_strength() -> None:
    assert helmholtz.relative_error(ClosedForm(8.0), 8.0) < 1e-6
    axis = torch.linspace(-1, 1, 401)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y, 0 * x], dim=-1).reshape(-1, 3)
    assert float(helmholtz.source(points).sum() * 0.005**2) == pytest.approx(1.0, abs=1e-3)


def test_a_plane_wave_solves_the_equation_and_decays_in_the_layer() -> None:
    """exp(-i k s(x)), s the stretched coordinate, solves the stretched equation exactly away from the source."""
    k = 8.0

    def wave(x: torch.Tensor) -> torch.Tensor:
        depth = (x[:, 0] - 0.5).clamp_min(0)
        decay = torch.exp(-k * helmholtz.STRETCH * depth**3 / (3 * 0.5**2))
        return torch.stack([decay * (k * x[:, 0]).cos(), -decay * (k * x[:, 0]).sin()], dim=-1)

    x = torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 0], x[:, 1] = 0.4 + 0.55 * x[:, 0], 0.6 + 0.35 * x[:, 1]  # the source is 1e-12 there
    assert helmholtz.residual(wave, x, k).abs().max() < 1e-8 * k**2
    assert float(wave(torch.tensor([[1.0, 0, 0]])).norm()) < 0.01


def test_a_tiny_run_prints_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    error = helmholtz.main(["--steps", "3", "--width", "8", "--points", "32"])
    assert np.isfinite(error) and "relative error against the closed form" in capsys.readouterr().out


def test_fitting_lowers_the_residual() -> None:
    events: list[float] = []
    run = Run(observers=(lambda e: events.append(e["loss"]["equation"]),))
    helmholtz.solve(4.0, 60, 24, 128, run)
    assert sum(events[-5:]) < 0.7 * sum(events[:5])
