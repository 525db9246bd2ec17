"""What the numbers of label maps mean."""

from __future__ import annotations

import pytest
import torch

from scanfield.data.labels import LabelTable, read_label_table, write_label_table
from scanfield.errors import InputError

TABLE = LabelTable((0, 17, 53), ("background", "left", "right, dorsal"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
def test_values_and_class_indices_are_each_others_inverse(dtype):
    values = torch.tensor([[0, 53, 17], [17, 0, 0]], dtype=dtype)
    indices = TABLE.indices(values)
    assert indices.dtype == torch.uint8 and indices.tolist() == [[0, 2, 1], [1, 0, 0]]
    back = TABLE.values_of(indices)
    assert back.dtype == torch.uint8 and torch.equal(back.to(dtype), values)


def test_label_maps_larger_than_what_is_looked_up_at_once():
    values = torch.tensor([0, 53, 17], dtype=torch.int16)[torch.arange(300_000) % 3].reshape(100, 3000)
    indices = TABLE.indices(values)
    assert torch.equal(TABLE.values_of(indices).to(values), values)
    values[99, 2999], values[0, 0] = 99, -4
    with pytest.raises(InputError, match="outside the table: -4, 99; it has"):
        TABLE.indices(values)


LARGE = LabelTable((0, 2**24 + 1, 2**24, 2**31 - 1), ("background", "a", "b", "c"))


def test_large_values_are_told_apart_or_refused():
    """In float32 what was 2**24 + 1 may read 2**24."""
    whole = torch.tensor(LARGE.values)
    assert LARGE.indices(whole).tolist() == LARGE.indices(whole.double()).tolist() == [0, 1, 2, 3]
    assert LabelTable((0, 2**24 - 1), ("background", "a")).indices(torch.tensor([2.0**24 - 1, 0.0])).tolist() == [1, 0]
    with pytest.raises(InputError, match="single precision"):
        LARGE.indices(torch.tensor([2.0**24, 0.0]))
    for strange in (whole + 2, torch.tensor([2.0**31], dtype=torch.float64), torch.tensor([2**32])):
        with pytest.raises(InputError, match="outside the table"):
            LARGE.indices(strange)


@pytest.mark.parametrize(
    "value", [2.5, 16.999, -0.5, float("nan"), float("inf"), -float("inf"), 1e30, 2.0**64 + 2.0**60]
)
def test_what_is_no_integer_is_outside_the_table(value):
    with pytest.raises(InputError, match="outside the table"):
        TABLE.indices(torch.tensor([0.0, value, 17.0], dtype=torch.float64))


def test_a_table_of_all_classes_that_a_byte_can_count():
    table = LabelTable(tuple(range(256)), tuple(f"n{k}" for k in range(256)))
    assert table.indices(torch.arange(256, dtype=torch.uint8)).tolist() == list(range(256))
    with pytest.raises(InputError, match="outside the table: 256"):
        table.indices(torch.tensor([255, 256]))
    with pytest.raises(InputError, match=f"outside the table: {2**32 + 17};"):
        TABLE.indices(torch.tensor([2**32 + 17]))


def test_no_voxels_have_no_indices():
    assert TABLE.indices(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(("top", "dtype"), [(255, torch.uint8), (256, torch.int16), (2**15, torch.int32)])
def test_the_smallest_type_that_holds_all_values(top, dtype):
    table = LabelTable((0, top), ("background", "a"))
    assert table.dtype == dtype and table.values_of(torch.tensor([1])).tolist() == [top]


@pytest.mark.parametrize(("found", "said"), [([0.0, 18.0, 17.0], "18"), ([0.5], "0.5"), ([-1.0], "-1")])
def test_values_outside_the_table_are_named(found, said):
    with pytest.raises(InputError, match=rf"outside the table: {said}; it has 0, 17, 53") as caught:
        TABLE.indices(torch.tensor(found), where="a.nii.gz")
    assert caught.value.where == "a.nii.gz"


def test_many_strange_values_are_not_all_listed():
    with pytest.raises(InputError, match=r"outside the table: 1, 2, 3, 4, 5, \.\.\.;"):
        TABLE.indices(torch.arange(12))


def test_tables_travel_as_json_and_as_csv(tmp_path):
    assert LabelTable.from_json(TABLE.to_json()) == TABLE and len(TABLE) == 3
    write_label_table(tmp_path / "labels.csv", TABLE)
    assert read_label_table(tmp_path / "labels.csv") == TABLE
    with pytest.raises(InputError, match="'values' and 'names'"):
        LabelTable.from_json({"values": [0, 1]})


def test_the_background_comes_first_and_may_be_left_out(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffname, value ,colour\nright,53,red\nair,0,\nleft,17\n".encode())
    assert read_label_table(path) == LabelTable((0, 53, 17), ("air", "right", "left"))
    path.write_text("value,name\n2,a\n")
    assert read_label_table(path) == LabelTable((0, 2), ("background", "a"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("value,label\n1,a\n", "no column 'name'"),
        ("value,name\n1,right, dorsal\n", "more values"),
        ("value,name\n1.5,a\n", "integer, got '1.5'"),
        ("value,name\n1,a\n1,b\n", "value '1' twice"),
        ("value,name\n1,a\n2,a\n", "name 'a' twice"),
        ("value,name\n1,\n", "value 1 has no name"),
        ("value,name\n-1,a\n", "0..2147483647"),
        ("value,name\n0,background\n", "1 to 255 classes"),
        ("value,name\n", "1 to 255 classes"),
        ("value,name\n" + "".join(f"{k},n{k}\n" for k in range(1, 257)), "got 256"),
    ],
)
def test_bad_tables_are_refused_with_one_sentence(tmp_path, text, match):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=match) as caught:
        read_label_table(path)
    assert "labels.csv" in caught.value.where


def test_a_table_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read_label_table(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no such file"):
        read_label_table(tmp_path / "none.csv")


def test_tables_made_by_hand_are_checked():
    with pytest.raises(InputError, match="background, value 0"):
        LabelTable((1, 2), ("a", "b"))
    with pytest.raises(InputError, match="2 values, but 1 names"):
        LabelTable((0, 2), ("a",))


def test_values_without_names():
    assert LabelTable.of_values({5, 0, 3}) == LabelTable((0, 3, 5), ("background", "label 3", "label 5"))
