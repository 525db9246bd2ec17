"""The figures of generated sequences: what is shaded where, and that nothing in the folder is trusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanfield.data.sequences import MaskSequence
from scanfield.errors import InputError
from scanfield.report.pictures import encode
from scanfield.report.synthesis import (
    CANVAS_FILE,
    COLUMNS,
    DESCRIPTOR_FILE,
    contact_sheet,
    length_unit,
    read_generated,
    section,
    shaded,
    synthesis_plates,
    write_canvas,
)
from scanfield.space.grid import Grid

GRID = Grid.centred((16, 16, 16), 1.0)
FACTS = {"synthesis": {"sequences": []}}


def ball(radius: float, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    return (((GRID.points() - torch.tensor(at)).norm(dim=1) < radius).reshape(GRID.shape)).numpy()


@pytest.fixture
def folder(tmp_path):
    lines, frames = [",".join(COLUMNS)], []
    for k in (1, 2):
        frames.append([ball(2.0 + k + t) for t in range(3)])
        for kind in ("training", "generated"):
            lines += [f"{kind},{k},{t + 1},{2 * t},{100 * k + t},{50 + t},0.9,1" for t in range(3)]
    write_canvas(tmp_path / CANVAS_FILE, np.array(frames), GRID, [0.0, 2.0, 4.0])
    (tmp_path / DESCRIPTOR_FILE).write_text("\n".join(lines))
    return tmp_path


def test_a_ball_is_bright_towards_the_light_and_blank_around():
    picture = shaded(ball(5.0), finer=2)
    assert np.isnan(picture[0]).all() and np.isnan(picture[:, 0]).all()
    rows, columns = np.nonzero(~np.isnan(picture))
    diameter = 2 * 5.0 * 2  # two pixels a voxel
    assert np.ptp(rows) + 1 == pytest.approx(diameter, abs=3) and np.ptp(columns) + 1 == pytest.approx(diameter, abs=3)
    half = picture.shape[0] // 2
    assert np.nanmean(picture[:half, :half]) > np.nanmean(picture[half:, half:]) + 0.2
    assert np.nanmin(picture) >= 0 and np.nanmax(picture) <= 1


def test_the_first_axis_points_right_and_the_second_up():
    picture = shaded(ball(2.0, (5.0, 3.0, 0.0)), finer=2)
    rows, columns = np.nonzero(~np.isnan(picture))
    middle = (picture.shape[0] - 1) / 2
    assert columns.mean() > middle + 6 and rows.mean() < middle - 3


def test_the_nearer_of_two_parts_hides_the_other():
    front, both = ball(3.0, (0.0, 0.0, 4.0)), ball(3.0, (0.0, 0.0, 4.0)) | ball(2.0, (0.0, 0.0, -4.0))
    np.testing.assert_array_equal(shaded(front), shaded(both))


def test_plates_are_drawn_from_the_folder(folder):
    plates = list(synthesis_plates(folder, FACTS))
    assert [plate.name for plate in plates] == ["contact-sheet", "masks", "descriptors"]
    assert all(encode(plate.figure, "png", 60)[:4] == b"\x89PNG" for plate in plates)
    record = read_generated(folder, FACTS)
    np.testing.assert_array_equal(record.times_s, [0, 2, 4])
    np.testing.assert_array_equal(record.sequences[1].frames[2].numpy(), ball(6.0))
    np.testing.assert_array_equal(record.descriptors["generated"]["volume_mm3"], [[100, 101, 102], [200, 201, 202]])
    assert list(synthesis_plates(folder, {})) == []
    assert "every picture 14 mm wide" in plates[0].caption, "a ball of 12 voxels, and one around it"


def test_a_section_shows_the_voxels_of_the_fullest_slice():
    mask = ball(3.0, (5.0, 3.0, 0.0)) | ball(4.9, (-2.0, -2.0, 2.5))
    picture = section(mask)
    fullest = mask[:, :, int(mask.sum(axis=(0, 1)).argmax())]
    np.testing.assert_array_equal(~np.isnan(picture), fullest.T[::-1])
    assert len(np.unique(picture[~np.isnan(picture)])) == 1


def test_many_sequences_and_many_frames_make_one_sheet():
    frames = torch.stack([torch.from_numpy(ball(3.0))] * 9)
    figure = contact_sheet([MaskSequence(frames, GRID, 1.0)] * 5)
    assert len(figure.axes) == 5
    assert figure.axes[0].images[0].get_array().shape[1] % 6 == 0, "six of nine moments"


def test_small_objects_are_described_in_micrometres():
    assert length_unit([4e-7, 3e-7, 5.0]) == ("µm", 1e3)
    assert length_unit([0.5, 2.0]) == ("mm", 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": np.zeros((2, 3, 9), np.uint8)},
        {"frames": np.zeros((2, 3, 512), np.uint8)},
        {"times_s": np.arange(4.0)},
        {"affine": np.eye(3)},
        {"shape": np.array([16, 16])},
    ],
)
def test_false_shapes_are_refused(change, folder):
    with np.load(folder / CANVAS_FILE) as file:
        kept = dict(file)
    np.savez(folder / CANVAS_FILE, **(kept | change))
    with pytest.raises(InputError):
        read_generated(folder, FACTS)


def test_missing_and_truncated_shapes_are_refused(folder):
    (folder / CANVAS_FILE).write_bytes((folder / CANVAS_FILE).read_bytes()[:200])
    with pytest.raises(InputError, match="shapes cannot be read"):
        read_generated(folder, FACTS)
    (folder / CANVAS_FILE).unlink()
    with pytest.raises(InputError, match="is missing"):
        read_generated(folder, FACTS)


def test_damaged_descriptors_are_refused(folder):
    for text in ("set,sequence\ntraining,1", ",".join(COLUMNS) + "\ntraining,1,1,0,1,1,1,1", "\xff"):
        (folder / DESCRIPTOR_FILE).write_text(text)
        with pytest.raises(InputError, match="descriptors cannot be read"):
            read_generated(folder, FACTS)
