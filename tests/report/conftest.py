"""A small complete RUN folder, written without the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from scanfield.report.build import build_report

IMAGES = (
    ("original", "original", "reference"),
    ("dense", "dense-view FBP", "reference"),
    ("scope", "SCOPE", "method"),
    ("field", "SCOPE field", "read-out"),
    ("fbp", "FBP", "baseline"),
    ("tv", "TV", "baseline"),
)
SCORES = {"scope": (30.0, 40.0), "field": (29.0, 36.0), "fbp": (20.0, 21.0), "tv": (31.25, 35.5)}


def _write(folder: Path, shape: tuple[int, ...] = (24, 20, 1), **changes: Any) -> Path:
    """Keywords replace members of run.json, None removes them."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    truth = 0.02 + 0.002 * rng.normal(size=shape)
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    for name, _, _ in IMAGES:
        values = truth + 0.0005 * rng.normal(size=shape)
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), folder / f"{name}.nii.gz")
    measured = rng.uniform(size=(9, 1, 31))
    predicted = measured + 0.01 * rng.normal(size=measured.shape)
    np.savez(folder / "measurements.npz", measured=measured, predicted=predicted, angles_deg=np.arange(9) * 20.0)
    lines = [
        {"stage": "fit", "step": k, "seconds": 0.1 * k, "loss": {"data": 1 / k}, "held_out": 0.5 / k}
        for k in range(10, 110, 10)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = [
        {
            "key": f"{metric}:{name}",
            "label": f"{label} vs {reference}",
            "unit": unit,
            "better": better,
            "note": note,
        }
        for name, reference in (("original", "original"), ("dense", "dense-view FBP"))
        for metric, label, unit, better, note in (
            ("psnr_db", "PSNR", "dB", "higher", f"data range of the {reference}, in the field of view"),
            ("nrmse", "NRMSE", "", "lower", ""),
        )
    ]
    rows = [
        {
            "name": name,
            "label": label,
            "kind": kind,
            "values": {
                "psnr_db:original": SCORES[name][0],
                "nrmse:original": 1 / SCORES[name][0],
                "psnr_db:dense": SCORES[name][1],
                "nrmse:dense": 1 / SCORES[name][1],
            },
        }
        for name, label, kind in IMAGES
        if kind != "reference"
    ]
    facts: dict[str, Any] = {
        "schema": 1,
        "task": "reconstruction",
        "method": "scope",
        "title": "Coordinate Projection Network",
        "citation": "Wu et al., IEEE TCI 9, 2023",
        "bibtex": "@article{wu2023,\n  title = {Coordinate Projection Network}\n}",
        "command": "scanfield reconstruct scan.npz --method scope -o run",
        "config": {"grid": {"levels": 8}, "steps": 100},
        "preset": "tiny",
        "seed": 7,
        "device": "cpu",
        "versions": {"scanfield": "0.1.0"},
        "inputs": [{"path": "scan.npz", "sha256": "ab" * 32}],
        "created": "2026-11-22T17:32:00+00:00",
        "unit": "1/mm",
        "timings": {"fit": 84.1},
        "warnings": ["the noise is unknown"],
        "notes": ["a note"],
        "status": "complete",
        "table": {"columns": columns, "rows": rows},
        "images": [
            {"name": name, "label": label, "kind": kind, "file": f"{name}.nii.gz"} for name, label, kind in IMAGES
        ],
        "measurements": {"file": "measurements.npz", "held_out_views": [2, 6], "unit": "1"},
        "display": {"window": [0.016, 0.024]},
        **changes,
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a RUN folder of its own: make_run(shape=..., **changes of run.json)."""
    return lambda **changes: _write(tmp_path / "run", **changes)


@pytest.fixture(scope="session")
def built_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RUN folder with its report, for tests that only look."""
    folder = _write(tmp_path_factory.mktemp("built") / "run")
    build_report(folder)
    return folder
