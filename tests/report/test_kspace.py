"""Figures of a series: read from a folder that is not trusted."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanfield.errors import InputError
from scanfield.report.kspace import (
    Cine,
    animation,
    error_figure,
    frames_figure,
    liveliest_row,
    profile_figure,
    read_kspace_record,
    residual_figure,
    shown_frames,
)
from scanfield.report.pictures import encode


def write(folder: Path, **changes: object) -> None:
    generator = np.random.default_rng(0)
    held = {
        "names": np.array(["nik", "gridding"]),
        "measured": generator.random((6, 5)),
        "predicted": generator.random((2, 6, 5)),
        "residual": generator.random((2, 6)),
        "held_out": np.array([1, 4]),
        "bands": np.linspace(0, 0.2, 9),
        "band_measured": generator.random(8),
        "band_residual": generator.random((2, 8)),
        "view": np.arange(6) / 6,
        "unit": np.array("cycle"),
        "moments": (np.arange(4) + 0.5) / 4,
        "step_s": np.array(0.2),
    } | changes
    np.savez(folder / "kspace.npz", **{name: value for name, value in held.items() if value is not None})


def cines(count: int = 4) -> list[Cine]:
    """A dot that goes down a column, and the same, brighter and later."""
    frames = np.zeros((count, 8, 6))
    for t in range(count):
        frames[t, 2, t % 6] = 1.0
    return [Cine("reference", "reference", "reference", frames, 2.0), Cine("nik", "NIK", "method", 2 * frames, 2.0)]


def test_every_figure_is_drawn(tmp_path):
    write(tmp_path)
    scan = read_kspace_record(tmp_path)
    assert scan.names == ("nik", "gridding") and scan.held_out == (1, 4)
    window = (0.0, 1.0)
    figures = [
        frames_figure(cines(), shown_frames(4), scan, window),
        frames_figure(cines(), [2], scan, window),
        profile_figure(cines(), 2, scan, window),
        error_figure(cines(), scan),
        residual_figure(scan),
    ]
    for figure in figures:
        assert encode(figure, "png", 60).startswith(b"\x89PNG") and b"</svg>" in encode(figure, "svg")
    titles = {text.get_text() for axes in figures[0].axes for text in [axes.title, *axes.texts]}
    assert {"0.125 of the cycle", "reference", "NIK"} <= titles


def test_errors_are_in_percent_of_the_reference_s_peak(tmp_path):
    write(tmp_path)
    line = error_figure(cines(), read_kspace_record(tmp_path)).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), 100 / np.sqrt(48))


def test_the_profile_goes_through_what_changes_most():
    assert liveliest_row(cines()) == 2
    assert shown_frames(20) == [0, 3, 6, 10, 13, 16] and shown_frames(3) == [0, 1, 2]


def test_the_cine_moves_at_its_own_speed_and_keeps_its_shape():
    with Image.open(io.BytesIO(animation(cines(), (0.0, 1.0), 0.2))) as gif:
        assert gif.n_frames == 4 and gif.info["duration"] == 200 and gif.info["loop"] == 0
        width, height = gif.size
        assert (width // 2 - 2) / (height - 14) == pytest.approx(6 / 16, abs=0.02), "pixels twice as tall as wide"
        first = np.asarray(gif.convert("L"), dtype=int)
        gif.seek(2)
        assert np.abs(np.asarray(gif.convert("L"), dtype=int) - first).max() > 200
    with Image.open(io.BytesIO(animation(cines(), (0.0, 1.0), float("nan")))) as gif:
        assert gif.info["duration"] == 500, "two seconds for all where no time is known"


def test_a_run_without_k_space_has_no_record(tmp_path):
    assert read_kspace_record(tmp_path) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"residual": np.zeros((2, 5))},
        {"band_residual": np.zeros((3, 8))},
        {"predicted": np.zeros((2, 6, 4))},
        {"measured": np.zeros(6)},
        {"names": np.array([], dtype=str)},
        {"held_out": np.array([6])},
        {"view": np.full(6, np.nan)},
        {"moments": np.array([])},
        {"bands": None},
        {"names": np.array([{}], dtype=object)},
    ],
)
def test_damaged_files_are_refused(tmp_path, changes):
    write(tmp_path, **changes)
    with pytest.raises(InputError, match="k-space of this run cannot be read"):
        read_kspace_record(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    write(tmp_path)
    raw = (tmp_path / "kspace.npz").read_bytes()
    (tmp_path / "kspace.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read_kspace_record(tmp_path)
