"""The server's addresses, asked as the page asks them."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

from scanfield.view import app as module
from scanfield.view.app import View
from scanfield.view.preview import FILE
from scanfield.view.raster import Raster, decode, encode

TOKEN, PORT = "secret", 8000


def client(paths: list[Path], stop: threading.Event | None = None) -> TestClient:
    view = View(paths, stop=None if stop is None else stop.set)
    ready = TestClient(view.app(TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}")
    ready.cookies.set(f"scanfield_view_{PORT}", TOKEN)
    return ready


def key(ready: TestClient) -> str:
    return str(ready.get("/api/items").json()["items"][0]["key"])


def test_the_list_and_one_item(finished: Path) -> None:
    ready = client([finished.parent])
    (item,) = ready.get("/api/items").json()["items"]
    assert item["title"] == "first run" and item["status"] == "complete"
    whole = ready.get(f"/api/items/{item['key']}").json()
    assert whole["quantities"] and not whole["stoppable"] and str(finished.parent) not in json.dumps(whole["layers"])


def test_files_come_as_they_are(finished: Path) -> None:
    ready = client([finished])
    address = f"/api/items/{key(ready)}"
    assert ready.get(f"{address}/layers/scope.nii.gz").content == (finished / "scope.nii.gz").read_bytes()
    picture = next((finished / "figures").glob("*.png"))
    assert ready.get(f"{address}/figures/{picture.name}").content == picture.read_bytes()
    assert ready.get(f"{address}/thumbnail.png").content.startswith(b"\x89PNG")
    assert "SCOPE" in ready.get(f"{address}/report.html").text


@pytest.mark.parametrize(
    "rest",
    [
        "layers/run.json",
        "layers/..%2Frun.json",
        "layers/%2Fetc%2Fpasswd",
        "layers/..%2F..%2F..%2Fetc%2Fpasswd",
        "figures/..%2Frun.json",
        "figures/.%2E%2Frun.json",
        "layers/field.safetensors",
    ],
)
def test_no_address_leads_out_of_what_is_shown(finished: Path, rest: str) -> None:
    ready = client([finished])
    assert ready.get(f"/api/items/{key(ready)}/{rest}").status_code == 404
    assert ready.get(f"/assets/{rest}").status_code == 404
    assert ready.get("/api/items/0123456789ab").status_code == 404


def test_a_detail_of_the_field(finished: Path) -> None:
    ready = client([finished])
    address = f"/api/items/{key(ready)}/detail.nii.gz"
    answer = ready.get(address, params={"centre": "0,0,0", "size": "12", "voxels": "32"})
    assert answer.status_code == 200 and answer.content.startswith(b"\x1f\x8b")
    for query in (
        {},
        {"centre": "0,0", "size": "1"},
        {"centre": "a,b,c", "size": "1"},
        {"centre": "0,0,0", "size": "-1"},
    ):
        refused = ready.get(address, params=query)
        assert refused.status_code == 422 and "detail" in refused.json()["error"]
    far = ready.get(address, params={"centre": "900,0,0", "size": "5"})
    assert far.status_code == 422 and "outside" in far.json()["error"]


def test_details_of_a_registration_and_of_a_compressed_file(registered: Path, compressed: Path) -> None:
    ready = client([registered, compressed])
    map_, file = (item["key"] for item in ready.get("/api/items").json()["items"])
    where = {"centre": "0,0,0", "size": "12", "voxels": "16"}
    for key_, what in ((map_, "determinant"), (map_, "warped"), (file, "image")):
        answer = ready.get(f"/api/items/{key_}/detail.nii.gz", params=where | {"what": what})
        assert answer.status_code == 200 and answer.content.startswith(b"\x1f\x8b"), what
    refused = ready.get(f"/api/items/{map_}/detail.nii.gz", params=where | {"what": "colour"})
    assert refused.status_code == 422 and "cannot be rendered here" in refused.json()["error"]
    whole = ready.get(f"/api/items/{file}/layers/whole.nii.gz")
    assert whole.status_code == 200 and whole.content.startswith(b"\x1f\x8b")


def test_measurements_come_as_numbers(finished: Path) -> None:
    ready = client([finished])
    address = f"/api/items/{key(ready)}/measurements"
    facts, values = decode(ready.get(address).content)
    assert facts["shown"] == "sinogram" and len(values) == 3
    for query, said in (
        ({"index": "x"}, "series=name&index=k"),
        ({"index": "99"}, "number 99"),
        ({"series": "?"}, "'?'"),
    ):
        refused = ready.get(address, params=query)
        assert refused.status_code == 422 and said in refused.json()["error"]


def test_a_coarse_first_look(finished: Path) -> None:
    ready = client([finished])
    answer = ready.get(f"/api/items/{key(ready)}/layers/scope.nii.gz", params={"coarse": "1"})
    assert answer.status_code == 200 and answer.content != (finished / "scope.nii.gz").read_bytes()


def test_scripts_are_compressed_for_those_who_take_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "files", lambda _: tmp_path)
    (tmp_path / "static" / "assets").mkdir(parents=True)
    (tmp_path / "static" / "assets" / "a-1.js").write_text("let a = 1;" * 100)
    ready = client([finished])
    packed = ready.get("/assets/a-1.js", headers={"accept-encoding": "gzip"})
    plain = ready.get("/assets/a-1.js", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert packed.text == plain.text and "immutable" in packed.headers["cache-control"]


def test_an_image_file_has_no_field(finished: Path) -> None:
    ready = client([finished / "fbp.nii.gz"])
    answer = ready.get(f"/api/items/{key(ready)}/detail.nii.gz", params={"centre": "0,0,0", "size": "5"})
    assert answer.status_code == 422 and "no field" in answer.json()["error"]


def test_news_of_a_finished_run_are_its_steps_and_its_status(finished: Path) -> None:
    ready = client([finished])
    text = ready.get(f"/api/items/{key(ready)}/events").text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds == ["steps", "status"]
    steps = json.loads(text.split("data: ")[1].splitlines()[0])
    assert steps[-1]["step"] == steps[-1]["of"] and "loss" in steps[-1]


def test_news_follow_a_fit_and_stop_reaches_it(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    record, log = folder / "run.json", folder / "log.jsonl"
    facts, lines = json.loads(record.read_text()), log.read_text().splitlines()
    record.write_text(json.dumps(facts | {"status": "running"}))
    log.write_text(lines[0] + "\n")
    stop = threading.Event()
    ready = client([folder], stop)
    name = key(ready)
    assert ready.get(f"/api/items/{name}").json()["stoppable"]
    assert ready.get(f"/api/items/{name}/preview").status_code == 404, "nothing has been drawn yet"
    (folder / FILE).parent.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(encode([Raster("axial", np.ones((2, 2)), "1/mm", ("row", "column"))], {"step": 3}))
    assert decode(ready.get(f"/api/items/{name}/preview").content)[0]["step"] == 3

    def fit() -> None:
        stop.wait(20)
        time.sleep(0.5)
        with log.open("a") as file:
            file.write("\n".join(lines[1:]) + "\n")
        record.write_text(json.dumps(facts | {"status": "interrupted"}))

    worker = threading.Thread(target=fit)
    worker.start()
    assert ready.post(f"/api/items/{name}/stop").json() == {"stopping": True}
    text = ready.get(f"/api/items/{name}/events").text
    worker.join()
    assert stop.is_set() and '"interrupted"' in text
    counted = sum(len(json.loads(part.splitlines()[0])) for part in text.split("event: steps\ndata: ")[1:])
    assert "event: preview" in text, "a picture was left"
    assert counted == sum('"step"' in line for line in lines)
    assert ready.post(f"/api/items/{name}/stop").status_code == 422, "it has ended"


def test_only_the_program_that_fits_can_be_stopped(finished: Path) -> None:
    ready = client([finished])
    answer = ready.post(f"/api/items/{key(ready)}/stop")
    assert answer.status_code == 422 and "not being fitted" in answer.json()["error"]


def test_the_page_or_how_to_build_it(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "files", lambda _: tmp_path)
    assert "make viewer" in client([finished]).get("/").text
    (tmp_path / "static" / "assets").mkdir(parents=True)
    (tmp_path / "static" / "index.html").write_text("<p>built</p>")
    (tmp_path / "static" / "assets" / "index-1.js").write_text("1")
    ready = client([finished])
    assert ready.get("/").text == "<p>built</p>" and ready.get("/assets/index-1.js").text == "1"


def test_a_thumbnail_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "damaged.nii.gz").write_bytes(np.zeros(9, np.uint8).tobytes())
    ready = client([tmp_path / "damaged.nii.gz"])
    answer = ready.get(f"/api/items/{key(ready)}/thumbnail.png")
    assert answer.status_code == 204 and not answer.content
