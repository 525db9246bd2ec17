"""`scanfield demo`, with the fit and the rivals replaced: what it runs and what it says."""

import json
import shlex

import pytest

from scanfield.cli import demo, reconstruct
from scanfield.cli.main import main
from scanfield.data.projections import read_projections
from scanfield.data.samples import sample_names


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The command lines that would have been fitted; each leaves a record like a real one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "VIEWS", 3)  # 45 take a few seconds
    lines = []

    def fake(argv):
        lines.append(list(argv))
        scan, folder = tmp_path / argv[1], tmp_path / argv[argv.index("-o") + 1]
        (folder / "run.json").write_text(json.dumps({"request": {"inputs": [str(scan)]}}))
        return 0

    monkeypatch.setattr(reconstruct, "main", fake)
    return lines


def test_it_scans_the_sample_and_repeats_itself_in_two_commands(asked, tmp_path, capsys):
    assert main(["demo", "-o", "demo"]) == 0
    scan = read_projections(tmp_path / "demo" / "scan.npz")
    assert scan.values.shape[0] == 3 and scan.kind == "projections:parallel" and scan.noise.kind == "poisson"
    *_, first, second = (line.strip() for line in capsys.readouterr().out.strip().splitlines())
    assert shlex.split(second)[1:] == asked[0]
    assert "--reference" in asked[0]
    before = (tmp_path / "demo" / "scan.npz").read_bytes()
    assert main(shlex.split(first)[1:]) == 0
    assert (tmp_path / "demo" / "scan.npz").read_bytes() == before


def test_it_replaces_itself_and_nothing_else(asked, tmp_path, capsys):
    assert main(["demo", "-o", "demo", "--quiet"]) == 0
    assert main(["demo", "-o", "demo", "--quiet", "--preset", "tiny", "--device", "cpu"]) == 0
    assert asked[1][asked[1].index("--preset") + 1] == "tiny" and asked[1][-2:] == ["cpu", "--quiet"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text('{"request": {"inputs": ["/other/scan.npz"]}}')
    assert main(["demo", "-o", "mine"]) == 2
    assert "holds a run that is not the demo's" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["run.json"]


def test_it_has_45_views_of_a_sample_that_ships():
    assert demo.VIEWS == 45
    assert demo.SAMPLE.removeprefix("sample:") in sample_names()
