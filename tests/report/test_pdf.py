"""The report as PDF."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

from scanfield.cli.main import main
from scanfield.errors import MissingExtra
from scanfield.report.pdf import write_pdf


def test_pages_of_a_report(built_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("weasyprint")
    assert main(["report", str(built_run), "--pdf"]) == 0
    pdf = (built_run / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-") and b"%%EOF" in pdf[-1024:] and len(pdf) > 20_000
    assert capsys.readouterr().out.split() == [str(built_run / "report.html"), str(built_run / "report.pdf")]


def test_nothing_is_fetched(tmp_path: Path) -> None:
    pytest.importorskip("weasyprint")
    (tmp_path / "secret.txt").write_text("secret")
    page = tmp_path / "report.html"
    page.write_text(f'<p>text</p><img src="file://{tmp_path}/secret.txt"><img src="http://127.0.0.1:9/x.png">')
    assert write_pdf(page).read_bytes().startswith(b"%PDF-")


def test_without_the_package(built_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: object) -> object:
        if name == "weasyprint":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match="weasyprint"):
        write_pdf(built_run / "report.html")
