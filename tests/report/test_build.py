"""The page: complete, self-contained, accessible, and safe with hostile text."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from scanfield.errors import InputError
from scanfield.report import build
from scanfield.report.build import build_report
from scanfield.report.pictures import Panel, comparison_figure, encode
from scanfield.report.views import views

Make = Callable[..., Path]
VOID = {"meta", "img", "br", "link", "input"}


def _facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


class _Page(HTMLParser):
    """Tags with their attributes, visible text, and whether every tag is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.parts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_complete_report(built_run: Path) -> None:
    page = _Page(built_run / "report.html")
    for expected in (
        "SCOPE",
        "Coordinate Projection Network",
        "Wu et al., IEEE TCI 9, 2023",
        "22 November 2026, 17:32 UTC",
        "24 × 20 × 1 voxels of 1.5 × 1.5 × 3 mm",
        "9 views × 31 detector bins, 0° to 160°",
        "the noise is unknown",
        "a note",
        "scanfield reconstruct scan.npz --method scope -o run",
        "grid.levels",
        "ab" * 32,
        "@article{wu2023",
        "The ranking by PSNR depends on the reference: against the original, TV wins (31.25 dB, then SCOPE with 30.00",
        "data range of the original, in the field of view",
        "from 0.016 to 0.024 1/mm",
        "Radiological convention: left R, right L, top A, bottom P.",
        "held out of the fit (40°, 120°)",
    ):
        assert expected in page.text
    assert "interrupted" not in page.text
    assert re.findall(r"Figure \d", page.text) == ["Figure 1", "Figure 2", "Figure 3", "Figure 4"]


def test_the_page_needs_nothing_else_and_runs_nothing(built_run: Path) -> None:
    path = built_run / "report.html"
    page = _Page(path)
    assert path.stat().st_size < 6e6
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
    for image in page.all("img"):
        source = str(image["src"])
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.split(",")[1]).startswith(b"\x89PNG")
    assert "@import" not in path.read_text() and "url(" not in path.read_text()
    policy = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "default-src 'none'" in str(policy[0]["content"])


def test_the_page_is_accessible(built_run: Path) -> None:
    page = _Page(built_run / "report.html")
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1 and len(page.all("title")) == 1
    assert all(str(image.get("alt")).strip() for image in page.all("img"))
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(page.all("img"))
    assert all(cell.get("scope") in ("col", "row", "colgroup") for cell in page.all("th"))


def test_the_best_values_stand_out(built_run: Path) -> None:
    text = (built_run / "report.html").read_text()
    assert re.findall(r'<td class="best">([^<]*)</td>', text) == ["40.00", "0.0250", "31.25", "0.0320"]


def test_figures_lie_beside_the_page_and_no_temporary_file_is_left(built_run: Path) -> None:
    folder = built_run
    inputs = {"run.json", "log.jsonl", "measurements.npz", *(f"{i['name']}.nii.gz" for i in _facts(folder)["images"])}
    assert {path.name for path in folder.iterdir()} - inputs == {"report.html", "figures"}
    stems = ("images-axial", "errors-axial-2", "measurements", "convergence")
    assert {path.name for path in (folder / "figures").iterdir()} == {f"{s}.{k}" for s in stems for k in ("png", "svg")}
    for stem in stems:
        png = (folder / "figures" / f"{stem}.png").read_bytes()
        at = png.index(b"pHYs") + 4
        assert int.from_bytes(png[at : at + 4], "big") * 0.0254 >= 200  # dots per inch


def test_the_same_folder_gives_the_same_page_again(built_run: Path, make_run: Make) -> None:
    folder = make_run()
    path = build_report(folder)
    assert path == folder / "report.html"
    assert path.read_bytes() == (built_run / "report.html").read_bytes()


def test_hostile_text_stays_text(make_run: Make) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}{% raw %}$\\frac{"
    column = {"key": "psnr_db:original", "label": evil, "unit": evil, "better": evil, "note": evil}
    row = {"name": "scope", "label": evil, "kind": "method", "values": {"psnr_db:original": 3.0}}
    folder = make_run(
        method=evil, title=evil, citation=evil, bibtex=evil, command=f"scanfield reconstruct '{evil}.npz'",
        created=evil, task=evil,
        unit=evil, preset=evil, device=evil, warnings=[evil], notes=[evil], versions={evil: evil},
        config={evil: {evil: evil}}, inputs=[{"path": evil, "sha256": evil}], timings={evil: 1.0}, facts={evil: evil},
        table={"columns": [column, {**column, "key": evil}], "rows": [row]},
        images=[
            {"name": "original", "label": evil, "kind": "reference", "file": "original.nii.gz", "note": evil},
            {"name": "scope", "label": evil, "kind": "method", "file": "scope.nii.gz"},
        ],
        measurements={"file": "measurements.npz", "held_out_views": [2], "unit": evil},
    )  # fmt: skip
    (folder / "log.jsonl").write_text(json.dumps({"stage": evil, "step": 1, "seconds": 1, "loss": {evil: 1.0}}) + "\n")
    page = _Page(build_report(folder))
    assert "script" not in {tag for tag, _ in page.tags}
    assert len(page.all("img")) == 3  # images, sinogram, convergence: no other
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("{{ 7*7 }}") >= 20
    for svg in (folder / "figures").glob("*.svg"):
        assert "<script" not in svg.read_text()


PIECES = {"images": "Radiological", "table": "All results on the same data", "measurements": "Sinogram of"}


@pytest.mark.parametrize(
    "missing", [["images"], ["table", "measurements"], ["display", "unit", "config", "inputs", "created", "timings"]]
)
def test_a_report_without_some_of_its_pieces(make_run: Make, missing: list[str]) -> None:
    page = _Page(build_report(make_run(**dict.fromkeys(missing))))
    for piece, words in PIECES.items():
        assert (words in page.text) == (piece not in missing)


def test_the_least_a_run_can_have(make_run: Make) -> None:
    folder = make_run(**dict.fromkeys(("images", "table", "measurements", "title", "citation", "bibtex", "versions")))
    (folder / "log.jsonl").unlink()
    page = _Page(build_report(folder))
    assert page.all("img") == [] and "scope" in page.text


def test_without_a_reference_there_are_no_error_maps(make_run: Make) -> None:
    folder = make_run()
    facts = _facts(folder)
    facts["images"] = [image for image in facts["images"] if image["kind"] != "reference"]
    facts["table"] = {
        "columns": [{"key": "held_out", "label": "held-out residual", "unit": "1", "better": "lower", "note": ""}],
        "rows": [{"name": "scope", "label": "SCOPE", "kind": "method", "values": {"held_out": 0.02}}],
    }
    (folder / "run.json").write_text(json.dumps(facts))
    page = _Page(build_report(folder))
    assert "error map" not in page.text
    assert "SCOPE, SCOPE field, FBP, TV" in str(page.all("img")[0]["alt"])


def test_an_interrupted_run_says_so(make_run: Make) -> None:
    page = _Page(build_report(make_run(status="interrupted")))
    assert "This run was interrupted at step 100." in page.text
    assert "scanfield reconstruct --resume RUN" in page.text


def test_a_volume_shows_three_planes(make_run: Make) -> None:
    folder = make_run(shape=(24, 20, 12))
    page = _Page(build_report(folder))
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"images-axial", "images-coronal", "images-sagittal", "errors-axial-2"} <= names
    assert "Axial plane 7 of 12" in page.text and "Sagittal plane 13 of 24" in page.text


def test_an_image_of_several_channels_without_measurements(make_run: Make) -> None:
    folder = make_run(
        images=[{"name": "scope", "label": "SCOPE", "kind": "method", "file": "scope.nii.gz"}],
        measurements=None, table=None, display=None, unit="arbitrary",
    )  # fmt: skip
    values = np.random.default_rng(0).normal(size=(16, 16, 1, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "scope.nii.gz")
    assert len(_Page(build_report(folder)).all("img")) == 2


@pytest.mark.parametrize("window", [[1.0, 1.0], [0.0, float("inf")], "wide"])
def test_a_useless_window_is_replaced_by_the_images_range(make_run: Make, window: Any) -> None:
    only = [{"name": "original", "label": "original", "kind": "reference", "file": "original.nii.gz"}]
    page = _Page(build_report(make_run(display={"window": window}, images=only, measurements=None)))
    low, high = (float(v) for v in re.findall(r"grey scale from ([\d.]+) to ([\d.]+)", page.text)[0])
    assert 0.010 < low < 0.020 < high < 0.030


def test_hounsfield_units_where_the_attenuation_of_water_is_known(make_run: Make) -> None:
    page = _Page(build_report(make_run(facts={"mu_water_per_mm": 0.02, "beam": "parallel"})))
    assert "0.024 1/mm (−200 to 200 HU, with μ of water 0.02 1/mm)" in page.text
    assert "parallel" in page.text and "mu water" not in page.text


def test_large_pictures_are_coarser_in_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 200_000
    monkeypatch.setattr(build, "PAGE_BYTES", limit)
    noise = np.random.default_rng(0).normal(size=(300, 300))
    view = views((300, 300, 1), np.eye(4))[0]
    figure = comparison_figure([Panel("noise", noise)], view, window=(-2, 2), unit="")
    finest = {"noise": encode(figure, "png")}
    assert len(finest["noise"]) > limit
    uris = build._embedded([build.Plate("noise", figure, "", "")], finest)
    assert 0.5 * limit < len(base64.b64decode(uris["noise"].split(",")[1])) <= limit


def test_nothing_is_written_for_a_folder_that_cannot_be_read_or_written(make_run: Make) -> None:
    folder = make_run(schema=99)
    with pytest.raises(InputError, match="newer"):
        build_report(folder)
    assert not (folder / "figures").exists() and not (folder / "report.html").exists()
    (folder / "run.json").write_text(json.dumps({**_facts(folder), "schema": 1}))
    (folder / "figures").write_text("a file in the way")
    with pytest.raises(InputError, match="cannot be written"):
        build_report(folder)
    assert not (folder / "report.html").exists()


def test_a_run_without_images_has_a_page(make_run: Make) -> None:
    """Not even a window: there is nothing to show in it."""
    page = build_report(make_run(images=[], display=None, measurements=None, table=None)).read_text()
    assert "Convergence" in page and "<h2>Images" not in page
