"""A method in a package of its own joins through its entry point; no file of scanfield knows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "outside_package" / "src"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which the example is installed: its code and the metadata an installer would write."""
    metadata = tmp_path / "installed" / "raymlp-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: raymlp\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[scanfield.methods]\nraymlp = raymlp.raymlp\n")
    paths = [str(metadata.parent), str(EXAMPLE), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_is_listed_shown_and_cited(environment: dict[str, str], tmp_path: Path) -> None:
    cards = json.loads(run(environment, tmp_path, "scanfield", "list", "--json"))
    assert {"scope", "raymlp"} <= {card["name"] for card in cards}
    assert "Fourier Features" in run(environment, tmp_path, "scanfield", "show", "raymlp")
    assert "tancik2020fourier" in run(environment, tmp_path, "scanfield", "cite", "raymlp")


@pytest.mark.slow
def test_it_passes_the_conformance_battery(environment: dict[str, str]) -> None:
    options = ["tests/conformance", "-k", "raymlp", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    closing = run(environment, ROOT, "pytest", *options).strip().splitlines()[-1]
    assert "passed" in closing and "failed" not in closing, closing
