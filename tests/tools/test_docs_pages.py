"""The generated pages of the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import docs_pages
from scanfield.bench import runner
from scanfield.cli.main import COMMANDS
from scanfield.methods.api import discover

ROOT = Path(__file__).resolve().parents[2]


def test_settings_are_read_from_the_source() -> None:
    source = """class Config:
        steps: int = 7
        'how many'
        rate: float | None = None
        'how fast'
    """
    rows = docs_pages.settings(source).splitlines()[2:4]
    assert rows == ["| `steps` | `int` | `7` | how many |", "| `rate` | `float | None` | `None` | how fast |"]


def test_a_method_page_has_card_settings_and_citation() -> None:
    card = discover()["scope"]
    page = docs_pages.method_page(card)
    assert page.startswith(f"# scope: {card.title}\n")
    assert "`learning_rate`" in page
    assert card.bibtex.strip() in page
    assert page.count("\n# ") == 0, "only one title"


def test_measured_numbers_are_those_of_the_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = {"name": "toy over FBP", "value": 3.25, "threshold": 3.0, "sense": ">=", "unit": "dB", "passed": True}
    machine = {"cpu": "two cores", "threads": 2, "python": "3.11.7", "torch": "2.13.0", "scanfield": "0.1.0"}
    new = {"method": "toy", "checks": [check], "table": [{"name": "toy", "psnr_db": 31.5}, {"name": "fbp"}]}
    new |= {"notes": ["one slice"], "seconds": 12.0, "device": "cpu", "seed": 0, "machine": machine}
    new |= {"commit": "abc1234", "date": "2026-01-01"}
    old = {**new, "table": [{"name": "toy", "psnr_db": 11.5}]}
    (tmp_path / "toy.jsonl").write_text(f"{json.dumps(old)}\n{json.dumps(new)}\n")
    monkeypatch.setattr(docs_pages, "RESULTS", tmp_path)
    text = docs_pages.measured("toy")
    assert "| toy over FBP | 3.25 dB | >= 3 dB | yes |" in text
    assert "| toy | 31.5 |" in text and "| fbp | – |" in text and "11.5" not in text
    assert "- one slice" in text and "12 s on two cores, 2 threads" in text
    assert "changed since" not in text, "the line does not say of which protocol it is"
    assert docs_pages.measured("other").startswith("Not measured yet")


def test_a_page_says_that_its_numbers_are_of_another_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"cpu": "two cores", "threads": 2, "torch": "2.13.0"}
    line = {"checks": [], "table": [], "notes": [], "seconds": None, "device": "cpu", "seed": 0, "machine": machine}
    line |= {"commit": "abc1234", "date": "2026-01-01", "protocol_sha256": runner.protocol_sha256("scope")}
    monkeypatch.setattr(docs_pages, "RESULTS", tmp_path)
    for digest, changed in ((line["protocol_sha256"], False), ("0" * 64, True)):
        (tmp_path / "scope.jsonl").write_text(json.dumps(line | {"protocol_sha256": digest}))
        text = docs_pages.measured("scope")
        assert ("has changed since" in text) == changed and "seed 0: on two cores" in text


def test_every_package_with_documented_modules_has_a_reference_page() -> None:
    pages = docs_pages.reference_pages()
    documented = {
        path.parent.relative_to(docs_pages.SOURCE).parts[0]
        for path in docs_pages.SOURCE.rglob("*.py")
        if path.parent != docs_pages.SOURCE and path.stat().st_size > 0
    }
    assert set(pages) == documented | {"package"}
    assert "::: scanfield.space.grid" in pages["space"]


@pytest.mark.slow
def test_the_page_of_commands_shows_every_command_and_option() -> None:
    page = docs_pages.cli_page()
    for name in (*COMMANDS, "simulate ct", "bench run"):
        assert f"## scanfield {name}" in page
    assert "--spacing-mm" in page
