"""What there is to see under a path, and what is said where there is nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scanfield.view.items import Item, description, events, find, summary
from scanfield.view.preview import FILE


def _one(path: Path) -> Item:
    (item,) = find([path])
    return item


def test_a_finished_run(finished: Path) -> None:
    item = _one(finished)
    assert item.kind == "run" and item.status == "complete" and not item.problem
    kinds = {layer.name: layer.kind for layer in item.layers}
    assert kinds["scope.nii.gz"] == "method" and kinds["fbp.nii.gz"] == "baseline"
    assert item.field == finished / "field.safetensors" and item.measured
    assert [quantity.name for quantity in item.quantities] == ["image"]
    said = summary(item)
    assert said["method"] == "scope" and said["numbers"] and said["seconds"] > 0
    assert str(finished) not in json.dumps(said), "no paths leave the server"
    whole = description(item)
    assert whole["quantities"][0]["unit"] == "1/mm" and whole["report"] and whole["facts"]["table"]["rows"]
    assert json.loads(json.dumps(whole)) == whole


def test_a_folder_of_runs_is_searched_two_levels_deep(finished: Path, tmp_path: Path) -> None:
    for name in ("a", "deep/b", "far/too/deep/c"):
        shutil.copytree(finished, tmp_path / name)
    assert [item.title for item in find([tmp_path])] == ["a", "b"]
    assert len({item.key for item in find([tmp_path, tmp_path / "a"])}) == 2, "nothing is listed twice"


def test_files(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "scope.nii.gz", tmp_path / "image.nii.gz")
    (tmp_path / "liver.ply").write_text("ply")
    (tmp_path / "notes.txt").write_text("")
    image, surface, text = find([tmp_path / name for name in ("image.nii.gz", "liver.ply", "notes.txt")])
    assert image.layers[0].kind == "file" and surface.layers[0].kind == "surface"
    assert "nothing can be shown" in text.problem and not text.layers
    assert "There is no such file" in _one(tmp_path / "missing.nii.gz").problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 99}, "newer version"),
        ({"schema": "1"}, "does not describe a run"),
        (None, "cannot be read"),
    ],
)
def test_runs_that_cannot_be_read_say_why(finished: Path, tmp_path: Path, change: dict | None, said: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    record = folder / "run.json"
    facts = record.read_text()
    record.write_text(facts[:100] if change is None else json.dumps(json.loads(facts) | change))
    item = _one(folder)
    assert (
        item.status == "problem"
        and said in item.problem
        and not item.layers
        and item.field is None
        and not item.measured
    )


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    assert "no run and holds none" in _one(tmp_path).problem


def test_a_half_written_run_is_running(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    facts = json.loads((folder / "run.json").read_text()) | {"status": "running"}
    (folder / "run.json").write_text(json.dumps(facts))
    item = _one(folder)
    assert item.status == "running" and not item.problem and item.field is None and item.preview is None
    (folder / FILE).parent.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(b"")
    assert _one(folder).preview == folder / FILE


def test_what_can_be_rendered_of_other_runs_and_files(registered: Path, compressed: Path, segmented: Path) -> None:
    map_, file, labels = find([registered, compressed, segmented])
    assert [(q.name, q.unit) for q in map_.quantities] == [
        ("warped", "HU"),
        ("displacement", "mm"),
        ("determinant", "1"),
    ]
    assert file.field == compressed and file.layers[0].rendered and [q.name for q in file.quantities] == ["image"]
    assert labels.field is None and not labels.quantities
    assert str(compressed.parent) not in json.dumps(description(file)), "no paths leave the server"


def test_news_of_a_log_come_once_and_in_whole_lines(tmp_path: Path) -> None:
    assert events(tmp_path) == ([], 0)
    log = tmp_path / "log.jsonl"
    log.write_text('{"stage": "fit", "step": 1, "of": 9}\n{"baseline": "TV"}\nno json\n{"stage": "fit", "st')
    first, offset = events(tmp_path)
    assert [event["step"] for event in first] == [1]
    with log.open("a") as file:
        file.write('ep": 2, "of": 9}\n')
    second, end = events(tmp_path, offset)
    assert [event["step"] for event in second] == [2] and events(tmp_path, end) == ([], end)
