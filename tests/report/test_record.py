"""Reading a RUN folder: what is in it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from scanfield.errors import InputError
from scanfield.report.record import read_record

Make = Callable[..., Path]


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_complete_folder(make_run: Make) -> None:
    folder = make_run()
    record = read_record(folder)
    assert [picture.name for picture in record.pictures] == ["original", "dense", "scope", "field", "fbp", "tv"]
    assert record.method_label == "SCOPE"
    assert record.grid is not None and record.grid.spacing_mm == (1.5, 1.5, 3.0)
    # Voxel axes to the left and the back lie as on screen.
    values = np.asarray(nibabel.load(folder / "scope.nii.gz").dataobj)  # type: ignore[attr-defined]
    np.testing.assert_allclose(record.pictures[2].cuts[0], values[:, :, 0].T)
    assert record.projections is not None and record.projections.held_out == (2, 6)
    assert len(record.events) == 10 and record.events[-1].loss == {"data": 0.01}
    assert record.rows[0].values["psnr_db:dense"] == 40.0


def test_images_are_sorted_references_first(make_run: Make) -> None:
    folder = make_run()
    images = json.loads((folder / "run.json").read_text())["images"]
    _edit(folder, images=images[::-1])
    kinds = [picture.kind for picture in read_record(folder).pictures]
    assert kinds == ["reference", "reference", "method", "read-out", "baseline", "baseline"]


def test_of_several_channels_the_first_is_shown(make_run: Make) -> None:
    folder = make_run(images=[{"name": "scope", "label": "SCOPE", "kind": "method", "file": "scope.nii.gz"}])
    values = np.random.default_rng(0).normal(size=(24, 20, 1, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0])), folder / "scope.nii.gz")
    np.testing.assert_allclose(read_record(folder).pictures[0].cuts[0], values[:, :, 0, 0].T)


def test_a_log_cut_off_by_a_kill_and_steps_repeated_after_a_resume(make_run: Make) -> None:
    folder = make_run()
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"baseline": "TV"}\n')
        file.write('{"stage": "fit", "step": 90, "seconds": 9.5, "loss": {"data": 3.0}, "held_out": null}\n')
        file.write('{"stage": "fit", "step": 110, "sec')
    events = read_record(folder).events
    assert [event.step for event in events] == list(range(10, 110, 10))
    assert events[8].loss == {"data": 3.0} and events[8].held_out is None


@pytest.mark.parametrize("text", ["not JSON\n", '{"step": 1, "loss": 3}\n', '{"step": "x", "loss": {}}\n'])
def test_a_damaged_line_in_the_middle_of_the_log(make_run: Make, text: str) -> None:
    folder = make_run()
    (folder / "log.jsonl").write_text(text + (folder / "log.jsonl").read_text())
    with pytest.raises(InputError, match="line 1 of the log"):
        read_record(folder)


def test_values_that_are_not_numbers_are_not_available(make_run: Make) -> None:
    folder = make_run()
    table = json.loads((folder / "run.json").read_text())["table"]
    table["rows"][0]["values"] = {"psnr_db:original": None, "psnr_db:dense": float("nan"), "nrmse:dense": float("inf")}
    _edit(folder, table=table)
    assert read_record(folder).rows[0].values == {"nrmse:dense": float("inf")}


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        read_record(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no run\.json"):
        read_record(tmp_path)
    for text in ("[1]", "{}", '{"schema": "1", "method": "scope"}', '{"schema": true, "method": "x"}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match="does not describe a run"):
            read_record(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 1, "method": "sc')
    with pytest.raises(InputError, match="cannot be read"):
        read_record(tmp_path)


def test_newer_schema_and_unfinished_runs(make_run: Make) -> None:
    folder = make_run(schema=2)
    with pytest.raises(InputError, match=r"newer version \(schema 2"):
        read_record(folder)
    _edit(folder, schema=1, status="running")
    with pytest.raises(InputError, match=r"not written its results.*\n.*\n.*--resume"):
        read_record(folder)
    _edit(folder, status="interrupted")
    assert read_record(folder).text("status") == "interrupted"


@pytest.mark.parametrize("name", ["../secret.nii.gz", "/etc/passwd", "a/b.nii.gz", "..\\x.nii.gz", "..", "."])
def test_names_may_not_leave_the_folder(make_run: Make, name: str) -> None:
    folder = make_run(images=[{"name": "a", "label": "a", "kind": "method", "file": name}])
    with pytest.raises(InputError, match="outside the RUN folder"):
        read_record(folder)


def test_missing_and_truncated_files(make_run: Make) -> None:
    folder = make_run()
    image = folder / "tv.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"tv\.nii\.gz"):
        read_record(folder)
    image.unlink()
    with pytest.raises(InputError, match=r"'tv\.nii\.gz' is missing"):
        read_record(folder)
    image.write_bytes(whole)
    archive = folder / "measurements.npz"
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(InputError, match="measurements cannot be read"):
        read_record(folder)


def test_pickled_measurements_are_never_unpickled(make_run: Make) -> None:
    folder = make_run()
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(folder / "measurements.npz", measured=objects, predicted=objects, angles_deg=objects)
    with pytest.raises(InputError, match="measurements cannot be read"):
        read_record(folder)


def test_contradictions(make_run: Make) -> None:
    folder = make_run()
    np.savez(
        folder / "measurements.npz", measured=np.ones((9, 1, 4)), predicted=np.ones((9, 1, 5)), angles_deg=np.ones(9)
    )
    with pytest.raises(InputError, match="one angle a view"):
        read_record(folder)
    np.savez(
        folder / "measurements.npz", measured=np.ones((9, 1, 4)), predicted=np.ones((9, 1, 4)), angles_deg=np.ones(9)
    )
    _edit(folder, measurements={"file": "measurements.npz", "held_out_views": [9]})
    with pytest.raises(InputError, match="indices of the 9 views"):
        read_record(folder)
    nibabel.save(nibabel.Nifti1Image(np.ones((24, 20, 2), np.float32), np.eye(4)), folder / "tv.nii.gz")
    _edit(folder, measurements=None)
    with pytest.raises(InputError, match=r"'tv'.*not on the same grid"):
        read_record(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"a": 1}}, "'images' must be a list"),
        ({"images": [{"name": "a", "kind": "picture", "file": "scope.nii.gz"}]}, "unknown kind 'picture'"),
        ({"images": [{"kind": "method", "file": "scope.nii.gz"}]}, "lacks the text 'name'"),
        ({"table": [1]}, "'table' must be an object"),
        ({"table": {"rows": [{"name": "a", "kind": "method", "values": [1]}]}}, "'values'"),
        ({"measurements": [1]}, "'measurements' must be an object"),
    ],
)
def test_malformed_facts(make_run: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_record(make_run(**changes))
