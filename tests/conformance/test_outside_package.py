"""A method in a package of its own is listed, runs from the command line and passes the battery."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder as pip would leave it: the package, and its metadata with the entry point."""
    folder = tmp_path_factory.mktemp("site")
    package, info = folder / "toyfield", folder / "toyfield-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").touch()
    for name in ("toy.py", "toy.md"):
        shutil.copy(HERE / "outside" / name, package)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toyfield\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scanfield.methods]\ntoy = toyfield.toy\n")
    return folder


def run(site: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(SOURCE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd or site, env=environment, capture_output=True, text=True, timeout=300
    )


def test_it_is_listed_without_importing_it(site):
    done = run(site, "-m", "scanfield", "list", "--json")
    assert done.returncode == 0, done.stderr
    assert "toy" in {method["name"] for method in json.loads(done.stdout)}
    code = "import sys; from scanfield.methods import api; api.discover(); print('torch' in sys.modules)"
    assert run(site, "-c", code).stdout.strip() == "False"


def test_it_is_shown_and_cited(site):
    assert "one file and one card" in run(site, "-m", "scanfield", "show", "toy").stdout
    assert "@misc{toy2024" in run(site, "-m", "scanfield", "cite", "toy").stdout


def test_it_runs_from_the_command_line(site, tmp_path):
    phantom = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tiny_data", sys.argv[1])
data = importlib.util.module_from_spec(spec); sys.modules["tiny_data"] = data; spec.loader.exec_module(data)
from scanfield.data.projections import write_projections
write_projections("scan.npz", data.KINDS["projections:fan"]().data)
"""
    done = run(site, "-c", phantom, str(HERE / "data.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(
        site, "-m", "scanfield", "reconstruct", "scan.npz", "--method", "toy", "--preset", "tiny", "--steps", "30",
        "--baselines", "none", "-o", "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["method"] == "toy" and record["config"]["steps"] == 30 and record["status"] == "complete"
    assert (tmp_path / "out" / "report.html").is_file()
    done = run(site, "-m", "scanfield", "render", "out", "-o", "fine.nii.gz", "--spacing-mm", "1.5", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "fine.nii.gz").is_file()


@pytest.mark.slow
def test_it_passes_the_battery(site):
    done = run(
        site,
        "-m",
        "pytest",
        str(HERE / "test_methods.py"),
        "-q",
        "-k",
        "toy",
        "-p",
        "no:cacheprovider",
        cwd=HERE.parents[1],
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout


def test_a_broken_outside_package_is_named(site, tmp_path):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scanfield.methods]\nbroken = nowhere_at_all.method\n")
    path = tmp_path
    done = run(path, "-m", "scanfield", "list")
    assert done.returncode != 0 and "entry point 'broken'" in done.stderr and "Traceback" not in done.stderr
    package = tmp_path / "nowhere_at_all"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "method.py").touch()
    done = run(path, "-m", "scanfield", "list")
    assert done.returncode != 0 and "no card" in done.stderr and "Traceback" not in done.stderr
