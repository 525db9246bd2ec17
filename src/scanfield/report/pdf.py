"""The report as PDF, through WeasyPrint."""

from __future__ import annotations

from pathlib import Path

from scanfield.data.write import write_atomically
from scanfield.errors import MissingExtra


def check_installed() -> None:
    """Raises MissingExtra unless WeasyPrint, and the libraries it draws with, are there."""
    try:
        import weasyprint
    except (ImportError, OSError):  # OSError: the package is there, Pango is not
        raise MissingExtra("weasyprint (and Pango)", "pdf", "a report as PDF") from None
    del weasyprint


def write_pdf(page: Path) -> Path:
    """Writes report.pdf beside report.html, from that page alone: nothing is fetched.

    Raises:
        MissingExtra: WeasyPrint is not installed.
    """
    check_installed()
    from weasyprint import HTML
    from weasyprint.urls import URLFetcher

    inside = URLFetcher(allowed_protocols=("data",), allow_redirects=False)
    document = HTML(string=page.read_text(encoding="utf-8"), url_fetcher=inside)
    with write_atomically(page.with_suffix(".pdf")) as temporary:
        document.write_pdf(temporary)
    return page.with_suffix(".pdf")
