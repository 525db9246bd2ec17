"""The page in a real browser, as somebody would use it. Skipped without Chromium, Playwright or the built page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scanfield
from scanfield.data.projections import write_projections
from scanfield.data.scan import Scan
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.shortcuts import open_result

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = Path(scanfield.__file__).parent / "view" / "static" / "index.html"
SOFTWARE = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
    pytest.mark.skipif(not PAGE.is_file(), reason="needs the built page: make viewer"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=SOFTWARE)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1200, "height": 1000})
    opened.complaints = []
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and opened.complaints.append(message.text))
    yield opened
    opened.close()


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


@pytest.fixture
def shown(finished: Path) -> Iterator[str]:
    process, address = started("view", str(finished), "--no-browser")
    yield address
    process.terminate()
    process.wait(20)


def colours(page: Any, canvas: Any) -> int:
    """How many different colours a canvas shows: one means blank."""
    from io import BytesIO

    from PIL import Image

    return len(Image.open(BytesIO(canvas.screenshot())).convert("RGB").getcolors(2**24) or [])


def test_a_finished_run(page: Any, shown: str, finished: Path) -> None:
    page.goto(shown)
    canvas = page.locator(".stage canvas").first
    page.wait_for_selector(".readout:has-text('mm (RAS)')")
    page.wait_for_timeout(500)
    assert colours(page, canvas) > 20, "the volume is drawn"
    assert page.locator("tr.method th").first.inner_text() == "SCOPE"
    page.wait_for_selector(".chart polyline")

    # The curtain moves.
    page.locator(".controls select").nth(1).select_option(label="FBP (rival)")
    front = page.locator(".stage canvas.front")
    front.wait_for(state="visible")
    before = front.evaluate("c => c.style.clipPath")
    page.locator(".curtain").fill("20")
    assert front.evaluate("c => c.style.clipPath") != before

    # Zooming asks the field for a finer grid than the image has.
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"])
    for _ in range(8):
        page.mouse.wheel(0, -100)
        page.wait_for_timeout(100)
    page.wait_for_selector(".detail[data-spacing]", timeout=20_000)
    finer = float(page.locator(".detail").get_attribute("data-spacing"))
    assert 0 < finer < open_result(finished).spec.grid.spacing_mm[0] / 4
    assert page.complaints == []


def test_it_opens_fast_and_refuses_another_token(page: Any, shown: str) -> None:
    page.goto(shown)  # the first visit also warms the browser
    page.wait_for_selector(".stage canvas")
    start = time.perf_counter()
    page.reload()
    page.wait_for_selector("tr.method")
    assert time.perf_counter() - start < 6.0, "below 2 s on a quiet machine; tests share theirs"
    stranger = page.context.browser.new_page()
    answer = stranger.goto(shown.split("token=")[0] + "token=wrong")
    assert answer.status == 401
    stranger.close()


def test_a_fit_is_followed_and_stopped(page: Any, finished: Path, tmp_path: Path) -> None:
    grid = open_result(finished).spec.grid
    values = 0.02 * (grid.points()[:, :2].norm(dim=-1) < 30).float().reshape(grid.shape)
    scan = simulate_ct(Scan(values, grid, unit="1/mm"), CtScanOptions(views=24, bins=48))
    write_projections(tmp_path / "scan.npz", scan)
    run = tmp_path / "run"
    process, address = started(
        *("reconstruct", str(tmp_path / "scan.npz"), "--method", "scope", "--preset", "tiny", "--steps", "200000"),
        *("--baselines", "none", "-o", str(run), "--view"),
    )
    try:
        page.goto(address)
        button = page.get_by_role("button", name="Stop and keep the result")
        button.wait_for(timeout=30_000)
        page.wait_for_selector(".chart polyline", timeout=30_000)
        first = page.locator("figcaption").inner_text()
        page.wait_for_function("was => document.querySelector('figcaption').textContent !== was", arg=first)
        assert "left" in page.locator("figcaption").inner_text()
        button.click()
        assert process.wait(60) == 1, "stopped before the end"
    finally:
        process.kill()
    assert (run / "field.safetensors").is_file() and (run / "report.html").is_file()


def test_what_is_no_run_says_so(page: Any, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": 99, "method": "scope"}')
    process, address = started("view", str(tmp_path), "--no-browser")
    try:
        page.goto(address)
        page.wait_for_selector("[role=alert]")
        assert "newer version" in page.locator("[role=alert]").inner_text()
    finally:
        process.terminate()
        process.wait(20)
