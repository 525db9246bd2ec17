"""The figure of energies: what it needs, and that a damaged folder is refused, not drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanfield.errors import InputError
from scanfield.report.spectral import read_curves

FACTS = {
    "energies_kev": [40.0, 60.0, 100.0],
    "reference_kev": 70.0,
    "points": [{"label": "metal", "mm": [0, 0, 0], "per_mm": [0.9, 0.4, 0.2]}],
}


def written(folder: Path, facts: object) -> Path:
    (folder / "energies.json").write_text(json.dumps(facts))
    return folder


def test_curves_are_read_by_name(tmp_path: Path) -> None:
    assert read_curves(tmp_path) is None
    found = read_curves(written(tmp_path, FACTS))
    assert found is not None
    assert found.energies_kev.tolist() == [40, 60, 100]
    assert found.curves["metal"].tolist() == [0.9, 0.4, 0.2]


@pytest.mark.parametrize(
    "facts",
    [
        [],
        {"energies_kev": [1.0]},
        FACTS | {"points": [{"label": "metal", "per_mm": [0.9]}]},
        FACTS | {"points": [{"label": "metal", "per_mm": [0.9, None, 0.1]}]},
        FACTS | {"energies_kev": "high"},
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, facts: object) -> None:
    with pytest.raises(InputError, match=r"energies\.json"):
        read_curves(written(tmp_path, facts))
