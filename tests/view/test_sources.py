"""Fields of runs and files, and what is rendered of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.data.nifti import read_nifti
from scanfield.errors import InputError
from scanfield.shortcuts import open_result
from scanfield.space.grid import Grid
from scanfield.tasks.compression import decompress
from scanfield.tasks.warp import displacement_on, mapping
from scanfield.view.items import find
from scanfield.view.sources import KEPT, Sources


def test_a_registration_has_its_map_and_the_image_it_moves(registered: Path) -> None:
    source, result = Sources().of(find([registered])[0]), open_result(registered)
    assert source.grid.same_as(result.spec.grid)
    box = source.grid.part((4, 5, 3), (8, 6, 5), 0.5)
    shift, determinant = displacement_on(mapping(result), box)
    assert torch.allclose(source.quantities["displacement"](box), shift.norm(dim=-1), atol=1e-5)
    assert torch.allclose(source.quantities["determinant"](box), determinant, atol=1e-5)
    whole = source.quantities["warped"](source.grid)
    inside = (slice(4, -4),) * 3
    assert torch.allclose(whole[inside], read_nifti(registered / "warped.nii.gz").values[inside], atol=8.0)
    assert 90 < whole.max() < 100.1


def test_without_the_moving_image_there_is_still_the_map(registered: Path, tmp_path: Path) -> None:
    for name in ("run.json", "field.safetensors"):
        (tmp_path / name).write_bytes((registered / name).read_bytes())
    item = find([tmp_path])[0]
    assert list(Sources().of(item).quantities) == [q.name for q in item.quantities] == ["displacement", "determinant"]


def test_a_compressed_volume_is_decoded_as_decompress_does(compressed: Path) -> None:
    source = Sources().of(find([compressed])[0])
    box = source.grid.part((3, 4, 5), (6, 5, 4), 0.5)
    np.testing.assert_array_equal(source.quantities["image"](box), decompress(compressed, grid=box).values)


def test_a_file_of_bricks_is_decoded_in_a_box(tmp_path: Path, bricks: Path) -> None:
    source = Sources().of(find([bricks])[0])
    whole = source.quantities["image"](source.grid)
    part = source.quantities["image"](source.grid.part((2, 3, 4), (5, 4, 3)))
    np.testing.assert_array_equal(part, whole[2:7, 3:7, 4:7])
    assert whole.max() > 50


def test_files_are_read_once_and_again_when_they_changed(finished: Path, registered: Path, compressed: Path) -> None:
    sources, (first, second, third) = Sources(), find([finished, registered, compressed])
    assert sources.of(first) is sources.of(first)
    sources.of(second)
    sources.of(third)
    assert len(sources) == KEPT
    kept = sources.of(third)
    os.utime(compressed, ns=(1, 1))
    assert sources.of(third) is not kept


def test_what_has_no_field_says_so(segmented: Path) -> None:
    with pytest.raises(InputError, match="no field"):
        Sources().of(find([segmented])[0])


def test_how_fast_a_field_is_is_measured_once(finished: Path) -> None:
    from scanfield.view.sources import Source

    calls: list[Grid] = []

    def image(box: Grid) -> torch.Tensor:
        calls.append(box)
        return torch.zeros(box.shape)

    source = Source(Grid.centred((64, 64, 1), 1.0), {"image": image})
    assert source.per_second("image") == source.per_second("image") > 1000
    assert len(calls) == 2 and calls[0].shape == (20, 20, 1)
