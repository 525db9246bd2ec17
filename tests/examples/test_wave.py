"""The wave example: its exact solution is one, and a tiny fit lowers the error."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from scanfield.run import Run


def example(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


wave = example("wave")


def test_the_exact_solution_starts_as_the_pulse_and_obeys_the_equation() -> None:
    r = np.array([0.05, 0.2, 0.4])
    np.testing.assert_allclose(wave.exact(r, 0 * r), np.exp(-(r**2) / (2 * wave.SIGMA_MM**2)), atol=1e-5)
    t, h = np.full(3, 0.15), 1e-3
    centre = wave.exact(r, t)
    in_time = (wave.exact(r, t + h) - 2 * centre + wave.exact(r, t - h)) / h**2
    outer, inner = wave.exact(r + h, t), wave.exact(r - h, t)
    in_space = (outer - 2 * centre + inner) / h**2 + (outer - inner) / (2 * h * r)
    np.testing.assert_allclose(in_time, wave.SPEED_MM_PER_US**2 * in_space, atol=0.2)
    assert np.abs(in_time).max() > 20


def test_a_tiny_run_prints_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    error = wave.main(["--steps", "3", "--width", "8", "--points", "32"])
    assert np.isfinite(error) and "relative error against the exact solution" in capsys.readouterr().out


def test_fitting_lowers_the_error() -> None:
    short, longer = (wave.relative_error(wave.solve(steps, 24, 128, Run())) for steps in (2, 80))
    assert longer < 0.9 * short
