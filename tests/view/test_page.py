"""The page in a real browser, as somebody would use it."""

from __future__ import annotations

import json
import re
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scanfield.data.nifti import write_nifti
from scanfield.data.projections import write_projections
from scanfield.data.scan import Scan
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.shortcuts import open_result
from scanfield.space.grid import Grid

pytestmark = pytest.mark.slow

DRAWN = ".middle .readout:has-text('mm (RAS+)')"


def pixels(canvas: Any) -> np.ndarray:
    """What a canvas shows, (rows, columns, 3)."""
    return np.asarray(Image.open(BytesIO(canvas.screenshot())).convert("RGB"))


def colours(canvas: Any) -> int:
    """How many different colours a canvas shows: one means blank."""
    return len(np.unique(pixels(canvas).reshape(-1, 3), axis=0))


def values(page: Any) -> str:
    return str(page.locator(".middle .readout").first.inner_text())


def test_a_finished_run(page: Any, shown: Any, finished: Path) -> None:
    with shown(finished) as address:
        page.goto(address)
        canvas = page.locator(".stage canvas").first
        page.wait_for_selector(DRAWN)
        page.wait_for_timeout(500)
        assert colours(canvas) > 20, "the volume is drawn"
        assert page.locator("tr.method th").first.inner_text() == "SCOPE"
        page.wait_for_selector(".chart polyline")
        assert "1/mm" in values(page), "values have their unit"

        # The curtain moves, and becomes a checkerboard.
        page.get_by_label("compared with").select_option(label="FBP (rival)")
        front = page.locator(".stage canvas.front")
        front.wait_for(state="visible")
        before = front.evaluate("c => c.style.clipPath")
        page.get_by_label("curtain between the two images").fill("20")
        assert front.evaluate("c => c.style.clipPath") != before
        page.get_by_label("compared by").select_option("checkerboard")
        page.wait_for_function("() => document.querySelector('.stage canvas.front').style.maskImage.includes('conic')")
        page.wait_for_timeout(300)
        mixed = pixels(page.locator(".stage"))
        page.get_by_label("compared with").select_option(label="nothing")
        page.wait_for_timeout(300)
        alone = pixels(page.locator(".stage"))
        differ = (mixed != alone).any(axis=2)[60:-60].mean()
        assert 0.005 < differ < 0.9, "some squares show the other image"
        page.get_by_label("compared with").select_option(label="FBP (rival)")

        # Zooming asks the field for a finer grid than the image has.
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"])
        for _ in range(8):
            page.mouse.wheel(0, -100)
            page.wait_for_timeout(50)
        page.wait_for_selector(".detail[data-spacing]")
        finer = float(page.locator(".detail").get_attribute("data-spacing"))
        assert 0 < finer < open_result(finished).spec.grid.spacing_mm[0] / 4


def test_measurements_are_pictures_whose_values_can_be_read(page: Any, shown: Any, finished: Path) -> None:
    with np.load(finished / "measurements.npz") as file:
        measured = file["measured"]
    with shown(finished) as address:
        page.goto(address)
        first = page.locator(".measured .raster").first
        first.locator("canvas").wait_for()
        labels = page.locator(".measured figcaption").all_inner_texts()
        assert labels == ["measured", "predicted", "predicted − measured"]
        assert first.locator("canvas").evaluate("c => [c.height, c.width]") == list(measured[:, 0].shape)
        first.locator("canvas").focus()
        page.keyboard.press("ArrowDown")
        views, columns = measured[:, 0].shape
        row, column = views // 2 + 1, columns // 2
        said = first.locator("output").inner_text()
        assert said.startswith(f"view {row + 1}, detector column {column + 1}: ")
        assert float(said.split(": ")[1].replace("−", "-")) == pytest.approx(float(measured[row, 0, column]), rel=1e-3)


def test_the_keyboard_moves_the_crosshair_and_zooms(page: Any, shown: Any, registered: Path) -> None:
    with shown(registered) as address:
        page.goto(address)
        page.wait_for_selector(DRAWN)
        page.locator(".stage canvas").first.focus()

        def place() -> list[float]:
            return [float(part) for part in values(page).split(" mm")[0].replace("−", "-").split(", ")]

        page.keyboard.press("ArrowUp")  # to the centre of a voxel
        before = place()
        for key, axis, step in (("ArrowLeft", 0, 2.0), ("ArrowUp", 1, 2.0), ("PageDown", 2, -2.0)):
            page.keyboard.press(key)
            after = place()
            assert after[axis] - before[axis] == pytest.approx(step, abs=0.15), f"{key}: {before} -> {after}"
            before = after
        page.keyboard.press("+")
        page.wait_for_selector(".detail[data-what='warped']")


def test_details_of_a_registration_are_images_displacements_and_determinants(
    page: Any, shown: Any, registered: Path
) -> None:
    with shown(registered) as address:
        page.goto(address)
        page.wait_for_selector(DRAWN)
        page.get_by_label("Jacobian determinant").check()
        legend = page.locator(".middle .legend-item")
        legend.wait_for()
        assert "Jacobian determinant (no unit)" in legend.inner_text()
        low, high = (float(v.replace("−", "-")) for v in legend.locator(".scale").inner_text().split())
        assert low < 1 < high and low + high == pytest.approx(2, abs=0.01), "1 is in the middle"
        page.get_by_role("button", name="render a detail from the field").click()
        page.wait_for_selector(".detail[data-what='warped']")
        for name, label in (("displacement", "length of the displacement"), ("determinant", "Jacobian determinant")):
            page.get_by_label("what is rendered").select_option(label=label)
            page.wait_for_selector(f".detail[data-what='{name}']")
            assert label in page.locator(".detail .legend-item").inner_text()
            assert colours(page.locator(".detail canvas")) > 20


def test_labels_have_names_and_colours_and_surfaces_are_shown(page: Any, shown: Any, segmented: Path) -> None:
    with shown(segmented) as address:
        page.goto(address)
        page.wait_for_selector(DRAWN)
        legend = page.locator(".middle .legend-item")
        assert legend.locator("li").all_inner_texts() == ["core", "rim"]
        painted = [swatch.evaluate("e => e.style.background") for swatch in legend.locator("i").all()]
        assert painted == ["rgb(0, 114, 178)", "rgb(230, 159, 0)"]
        assert "segmentation: core" in values(page) or "segmentation: rim" in values(page)
        blue = (np.abs(pixels(page.locator(".stage canvas").first).astype(int) - (0, 114, 178)).sum(axis=2) < 150).sum()
        assert blue > 100, "the labels have the legend's colours"
        page.get_by_label("uncertainty").check()
        page.wait_for_function("() => document.querySelectorAll('.middle .legend-item').length === 2")
        assert page.locator(".middle .scale").inner_text().split() == ["0", "1"]
        page.get_by_label("uncertainty").uncheck()
        page.get_by_label("view", exact=True).select_option(label="3-D")
        page.wait_for_timeout(300)
        before = pixels(page.locator(".stage canvas").first)
        page.get_by_label("surface: core").check()
        page.wait_for_timeout(800)
        assert (pixels(page.locator(".stage canvas").first) != before).any(axis=2).sum() > 200


def test_a_series_plays(page: Any, shown: Any, moving: Path) -> None:
    with shown(moving) as address:
        page.goto(address)
        page.wait_for_selector(DRAWN)
        frame = page.locator(".cine output")
        assert frame.inner_text() == "frame 1 of 6"
        still = pixels(page.locator(".stage canvas").first)
        page.get_by_role("button", name="play").click()
        page.wait_for_function("() => !document.querySelector('.cine output').textContent.startsWith('frame 1 ')")
        page.get_by_role("button", name="pause").click()
        page.get_by_label("frame", exact=True).fill("2")
        page.wait_for_timeout(200)
        assert frame.inner_text() == "frame 3 of 6"
        assert (pixels(page.locator(".stage canvas").first) != still).any()


def test_a_compressed_file_is_decoded_where_one_looks(page: Any, shown: Any, compressed: Path) -> None:
    with shown(compressed) as address:
        page.goto(address)
        page.wait_for_selector(DRAWN)
        assert colours(page.locator(".stage canvas").first) > 20
        page.get_by_role("button", name="render a detail from the field").click()
        page.wait_for_selector(".detail[data-spacing]")
        assert float(page.locator(".detail").get_attribute("data-spacing")) < 1.0


def test_two_runs_side_by_side_move_together(page: Any, shown: Any, finished: Path, registered: Path) -> None:
    with shown(finished / "scope.nii.gz", finished / "fbp.nii.gz", registered) as address:
        page.goto(address)
        page.locator(".card").nth(2).wait_for()
        for place in (0, 1):
            page.locator(".card input").nth(place).check()
        page.get_by_role("link", name="side by side").click()
        page.wait_for_function("() => document.querySelectorAll('.middle .readout').length === 2")
        page.wait_for_function("() => [...document.querySelectorAll('.middle .readout')].every(r => r.textContent)")
        stages = page.locator(".stage")

        def places() -> list[str]:
            return [text.split(" mm")[0] for text in page.locator(".middle .readout").all_inner_texts()]

        box = stages.first.bounding_box()
        page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.4 * box["height"])
        page.wait_for_timeout(200)
        first, second = places()
        assert first == second and first != "0.0, 0.0, 0.0"
        before = pixels(stages.nth(1))
        page.get_by_label("zoom in").first.click()
        page.wait_for_timeout(200)
        assert (pixels(stages.nth(1)) != before).any(), "the zoom is tied"
        page.get_by_label("brightest value").first.fill("0.05")
        page.keyboard.press("Tab")
        assert page.get_by_label("brightest value").nth(1).input_value() == "0.05", "the window is tied"
        page.get_by_label("tie crosshairs, zoom and window").uncheck()
        page.mouse.click(box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"])
        page.wait_for_timeout(200)
        assert places()[0] != places()[1]


def test_many_items_one_after_the_other(page: Any, shown: Any, finished: Path) -> None:
    """Browsers allow some sixteen canvases with graphics memory, and warn from there on."""
    with shown(finished / "scope.nii.gz", finished / "fbp.nii.gz") as address:
        page.goto(address)
        page.locator(".card").nth(1).wait_for()
        keys = [link.get_attribute("href") for link in page.locator(".card h2 a").all()]
        for visit in range(18):
            page.evaluate("address => { location.hash = address }", keys[visit % 2])
            name = ("scope.nii.gz", "fbp.nii.gz")[visit % 2]
            page.wait_for_function(
                """name => document.querySelector('h1')?.textContent === name
                && document.querySelector('.middle .readout')?.textContent.includes('RAS')""",
                arg=name,
            )
        assert colours(page.locator(".stage canvas").first) > 20


def test_it_opens_fast_and_refuses_another_token(page: Any, shown: Any, finished: Path) -> None:
    with shown(finished) as address:
        page.goto(address)  # the first visit also warms the browser
        page.wait_for_selector(DRAWN)
        start = time.perf_counter()
        page.reload()
        page.wait_for_selector("tr.method")
        page.wait_for_selector(DRAWN)
        assert time.perf_counter() - start < 10.0, "below 2 s on a quiet machine; tests share theirs"
        stranger = page.context.browser.new_page()
        answer = stranger.goto(address.split("token=")[0] + "token=wrong")
        assert answer.status == 401
        stranger.close()


def test_a_fit_is_followed_and_stopped(page: Any, start: Any, finished: Path, tmp_path: Path) -> None:
    grid = open_result(finished).spec.grid
    disc = 0.02 * (grid.points()[:, :2].norm(dim=-1) < 30).float().reshape(grid.shape)
    scan = simulate_ct(Scan(disc, grid, unit="1/mm"), CtScanOptions(views=24, bins=48))
    write_projections(tmp_path / "scan.npz", scan)
    run = tmp_path / "run"
    process, address = start(
        *("reconstruct", str(tmp_path / "scan.npz"), "--method", "scope", "--preset", "tiny", "--steps", "200000"),
        *("--baselines", "none", "-o", str(run), "--view"),
    )
    try:
        page.goto(address)
        button = page.get_by_role("button", name="Stop and keep the result")
        button.wait_for()
        page.wait_for_selector(".chart polyline")
        caption = page.locator(".chart figcaption")
        first = caption.inner_text()
        page.wait_for_function("was => document.querySelector('.chart figcaption').textContent !== was", arg=first)
        assert "left" in caption.inner_text()
        page.wait_for_selector(".preview[data-step]", state="visible")
        step = page.locator(".preview").get_attribute("data-step")
        picture = page.locator(".preview .raster canvas")
        assert colours(picture) > 5, "the field as it is now"
        page.wait_for_function("was => document.querySelector('.preview').dataset.step !== was", arg=step)
        button.click()
        assert process.wait(60) == 1, "stopped before the end"
    finally:
        process.kill()
    assert (run / "field.safetensors").is_file() and (run / "report.html").is_file()
    assert not (run / "state" / "preview.raster").exists(), "nothing is left of the pictures"
    page.complaints.clear()  # the server ended with the fit


def test_a_training_is_seen_while_it_learns(page: Any, start: Any, tmp_path: Path) -> None:
    lines = ["path,label,subject,split"]
    for k in range(3):
        grid = Grid.centred((40, 36, 1), 1.0)
        inside = (grid.points() - torch.tensor([3.0 * k - 4, 2.0, 0.0])).norm(dim=1).reshape(grid.shape) < 8 + k
        write_nifti(tmp_path / f"{k}.nii.gz", 100 * inside.float() + k, grid)
        write_nifti(tmp_path / f"{k}_label.nii.gz", inside.byte(), grid)
        lines.append(f"{k}.nii.gz,{k}_label.nii.gz,p{k},train")
    (tmp_path / "cohort.csv").write_text("\n".join(lines))
    process, address = start(
        *("train", "iosnet", "--cohort", str(tmp_path / "cohort.csv"), "-o", str(tmp_path / "model")),
        *("--preset", "tiny", "--steps", "20000", "--device", "cpu", "--view"),
    )
    try:
        page.goto(address)
        page.wait_for_selector(".preview[data-step]", state="visible")
        assert page.locator(".preview figcaption").inner_text() == "axial: classes of an image to learn from"
        picture = page.locator(".preview .raster canvas")
        page.wait_for_function("() => Number(document.querySelector('.preview').dataset.step) > 60")
        assert colours(picture) > 1, "the network has found something"
        page.get_by_role("button", name="Stop and keep the result").click()
        assert process.wait(60) == 1, "stopped before the end"
    finally:
        process.kill()
    assert (tmp_path / "model" / "model.safetensors").is_file()
    page.wait_for_timeout(1500)
    page.complaints.clear()  # the server ended with the training


def test_generated_masks_are_played(page: Any, shown: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        grid = Grid.centred((20, 20, 20), 8e-4)
        length = grid.points().norm(dim=1).reshape(grid.shape)
        frames = torch.stack([length < 8e-4 * (3 + number + t) for t in range(4)], dim=-1)
        write_nifti(tmp_path / f"sequence_{number:02d}.nii.gz", frames.byte(), grid, unit="1", step_s=60.0)
    facts = {
        "schema": 1,
        "method": "cell_shapes",
        "task": "synthesis",
        "status": "complete",
        "synthesis": {"sequences": [{"file": f"sequence_{number:02d}.nii.gz"} for number in (1, 2)]},
        "display": {"window": [0.0, 1.0]},
    }
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with shown(tmp_path) as address:
        page.goto(address)
        page.wait_for_selector(DRAWN)
        page.wait_for_timeout(500)
        canvas = page.locator(".stage canvas").first
        assert colours(canvas) > 5, "masks are an image, not something on top of nothing"
        assert page.get_by_label("image", exact=True).locator("option").all_inner_texts() == [
            "sequence 1",
            "sequence 2",
        ]
        first = pixels(canvas)
        page.get_by_role("slider", name="frame").fill("3")
        page.wait_for_timeout(500)
        assert (pixels(canvas) != first).any(), "it has grown"
        assert re.match(r"\S+\.\d{5}, \S+\.\d{5}, \S+\.\d{5} mm", values(page)), "digits that suit the voxels"


def test_what_is_no_run_says_so(page: Any, shown: Any, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": 99, "method": "scope"}')
    with shown(tmp_path) as address:
        page.goto(address)
        page.wait_for_selector("[role=alert]")
        assert "newer version" in page.locator("[role=alert]").inner_text()
