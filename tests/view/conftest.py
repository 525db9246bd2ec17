"""Runs of every kind, made once, and a real browser. Without Chromium, Playwright or the built page its tests skip."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scanfield
from scanfield.data.nifti import write_nifti
from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.methods import api
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.run import Run
from scanfield.shortcuts import reconstruct
from scanfield.space.grid import Grid
from scanfield.tasks.bricks import compress_bricks
from scanfield.tasks.compression import compress
from scanfield.tasks.registration import register

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = Path(scanfield.__file__).parent / "view" / "static" / "index.html"
SOFTWARE = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]

Shown = Callable[..., Any]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reconstruction of a slice with its folder complete."""
    grid = Grid.centred((48, 40, 1), (2.0, 2.0, 3.0))
    x = grid.points()
    values = 0.02 * (x[:, :2].norm(dim=-1) < 30).float().reshape(grid.shape)
    scan = simulate_ct(Scan(values, grid, unit="1/mm"), CtScanOptions(views=24, bins=48))
    folder = tmp_path_factory.mktemp("runs") / "first run"
    reconstruct(scan, "scope", preset="tiny", folder=folder, baselines="fast")
    return folder


def ball(centre: tuple[float, float, float]) -> Scan:
    """A soft ball of radius 8 mm in a small volume."""
    grid = Grid.centred((20, 18, 16), 2.0)
    distance = (grid.points() - torch.tensor(centre)).norm(dim=-1)
    return Scan((100 * torch.sigmoid(8 - distance)).round().reshape(grid.shape), grid, unit="HU")


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny registration of two volumes."""
    folder = tmp_path_factory.mktemp("maps") / "registered"
    pair = Pair(ball((0, 0, 0)), ball((2, 1, 0)))
    register(pair, "idir", api.load("idir").Config.tiny(), Run(folder), preset="tiny", baselines="none")
    return folder


@pytest.fixture(scope="session")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume in a small file."""
    path = tmp_path_factory.mktemp("files") / "ball.sfz"
    config, run = api.load("sci").Config.tiny(), Run()
    compress(ball((0, 0, 0)), "sci", config, run, path, stored_type="int16", max_bytes=3000, baselines=False)
    return path


@pytest.fixture(scope="session")
def bricks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume in a file of eight bricks."""
    folder = tmp_path_factory.mktemp("bricks")
    volume, path = ball((0, 0, 0)), folder / "ball.sfz"
    write_nifti(folder / "ball.nii.gz", volume.values.to(torch.int16), volume.grid, unit="HU")
    config = api.load("sci").Config.tiny()
    compress_bricks(folder / "ball.nii.gz", "sci", config, Run(), path, bits_per_voxel=8.0, edge=12, baselines=False)
    return path


@pytest.fixture(scope="session")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a segmentation leaves: labels with names and colours, their uncertainty, a surface."""
    folder = tmp_path_factory.mktemp("labels") / "segmented"
    folder.mkdir()
    image = ball((0, 0, 0))
    grid, inside = image.grid, image.values > 50
    labels = inside.to(torch.uint8) * (1 + (grid.points()[:, 0].reshape(grid.shape) > 0).to(torch.uint8))
    write_nifti(folder / "image.nii.gz", image.values, grid, unit="HU")
    write_nifti(folder / "segmentation.nii.gz", labels, grid)
    write_nifti(folder / "reference.nii.gz", inside.to(torch.uint8), grid)
    write_nifti(folder / "uncertainty.nii.gz", torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)), grid)
    corners = [(0, 0, 8), (8, 0, -4), (-4, 7, -4), (-4, -7, -4)]
    faces = [(0, 1, 2), (0, 2, 3), (0, 3, 1), (1, 3, 2)]
    head = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    head += "element face 4\nproperty list uchar int vertex_indices\nend_header\n"
    body = "".join(f"{a} {b} {c}\n" for a, b, c in corners) + "".join(f"3 {a} {b} {c}\n" for a, b, c in faces)
    (folder / "surface_core.ply").write_text(head + body)
    classes = [
        {"value": 1, "name": "core", "colour": "#0072B2", "surface": "surface_core.ply"},
        {"value": 2, "name": "rim", "colour": "#E69F00", "surface": None},
    ]
    facts = {
        "schema": 1,
        "method": "nisf",
        "task": "segmentation",
        "status": "complete",
        "unit": "HU",
        "images": [{"name": "image", "label": "image", "kind": "reference", "file": "image.nii.gz"}],
        "segmentation": {"file": "segmentation.nii.gz", "classes": classes},
    }
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="session")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slice over six moments."""
    path = tmp_path_factory.mktemp("series") / "beating.nii.gz"
    grid = Grid.centred((24, 20, 1), 1.5)
    radius = grid.points()[:, :2].norm(dim=-1).reshape(grid.shape)
    frames = torch.stack([(radius < 6 + 2 * np.sin(t)).float() for t in range(6)], dim=-1)
    write_nifti(path, frames, grid, step_s=0.05)
    return path


# A browser -----------------------------------------------------------------------------------------------------------


def started(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """`scanfield ...` in a process of its own, and the address that it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scanfield", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line):
            return process, found.group()
    raise AssertionError(f"no address was printed:\n{said}")


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    """`started`, for tests that follow a fit."""
    return started


@pytest.fixture(scope="session")
def shown() -> Shown:
    """Shows paths: `with shown(path, ...) as address`."""

    @contextmanager
    def serving(*paths: Path) -> Iterator[str]:
        process, address = started("view", *map(str, paths), "--no-browser")
        try:
            yield address
        finally:
            process.terminate()
            process.wait(20)

    return serving


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium without a GPU."""
    if BROWSER is None or not PAGE.is_file():
        pytest.skip("needs Chromium, and the built page: make viewer")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=SOFTWARE)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh page; the test fails if anything was complained about on its console."""
    opened = browser.new_page(viewport={"width": 1200, "height": 1000})
    opened.set_default_timeout(30_000)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    opened.complaints = complaints
    yield opened
    opened.close()
    # A test's server may end before a request that nobody waits for.
    assert [text for text in complaints if "ERR_CONNECTION_REFUSED" not in text] == []
