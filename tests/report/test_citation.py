"""One printed line from BibTeX."""

from __future__ import annotations

import pytest

from scanfield.report.citation import one_line


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (
            "@article{a,\n  author = {Wu, Qing and Feng, Ruimin},\n  title = {A {CT} Network},\n"
            "  journal = {IEEE TCI},\n  volume = {9},\n  year = {2023}\n}",
            "Wu et al., A CT Network, IEEE TCI 9, 2023",
        ),
        (
            '@inproceedings{b, author="Vincent Sitzmann", title="Periodic Functions", booktitle={NeurIPS}, year=2020}',
            "Sitzmann, Periodic Functions, NeurIPS, 2020",
        ),
        ("Wu et al.,\n  2023", "Wu et al., 2023"),
        ("@misc{c, title = {never closed", "never closed"),
    ],
)
def test_one_line(entry: str, line: str) -> None:
    assert one_line(entry) == line
