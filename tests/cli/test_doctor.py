"""`scanfield doctor`: what works, what is missing, what is broken."""

import json

import pytest

from scanfield.cli import doctor
from scanfield.cli.main import main


def test_a_working_installation(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "✓ torch" in text and "GFLOP/s" in text and "Everything essential works." in text
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_a_note_with_its_command(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"dicom": ("no_such_module", "DICOM series")})
    assert main(["doctor", "--json"]) == 0
    findings = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["dicom"]["state"] == "note" and findings["dicom"]["fix"] == "pip install 'scanfield[dicom]'"


@pytest.mark.parametrize("name", ["samples", "compute", "writing", "methods"])
def test_a_check_that_fails_is_broken_and_named(name, capsys, monkeypatch):
    def fail():
        raise OSError("the disk has gone")

    monkeypatch.setattr(doctor, f"_{name}", fail)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert f"✗ {name}" in text and "the disk has gone" in text and "Something essential is broken" in text


def test_a_missing_requirement_is_broken(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", ("no-such-package",))
    assert main(["doctor"]) == 1
    assert "pip install no-such-package" in capsys.readouterr().out
