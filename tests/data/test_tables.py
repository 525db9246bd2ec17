"""Tables that people write, and what is wrong with some of them."""

from __future__ import annotations

import pytest

from scanfield.data.cohort import read_cohort
from scanfield.data.labels import read_label_table
from scanfield.data.tables import read_table
from scanfield.errors import InputError


def test_what_spreadsheets_save_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfname , value,note\r\n\r\n "right, dorsal", 3 ,\r\nleft,4\r\n')
    rows = read_table(path, ["value", "name"])
    assert [row.values for row in rows] == [
        {"name": "right, dorsal", "value": "3", "note": ""},
        {"name": "left", "value": "4", "note": ""},
    ]
    assert rows[1].where == f"{path}: row 2", "empty lines do not count"


@pytest.mark.parametrize(
    ("content", "said", "where", "fix"),
    [
        (b"values,name\n", r"no column 'value' \(did you mean 'values'\?\)", "a.csv", "value,name"),
        (b"", "no column 'value'", "a.csv", "value,name"),
        (b"value,name,value\n1,a,2\n", "column 'value' twice", "a.csv", "value,name"),
        (b"value,name\n1,a\n2,right, dorsal\n", "more values than", "a.csv: row 2", "quotes"),
        (b"\xff\xfe\x00\x81", "cannot be read as CSV", "a.csv", "save it as CSV"),
    ],
)
def test_every_table_says_what_is_wrong_in_the_same_words(tmp_path, content, said, where, fix):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    for what, read in (
        ("the table", lambda p: read_table(p, ["value", "name"])),
        ("the label table", read_label_table),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read(path)
        assert caught.value.what.startswith((what, "the row")) and fix in caught.value.fix
        assert caught.value.where.endswith(where)


def test_cohorts_are_such_tables(tmp_path):
    path = tmp_path / "cohort.csv"
    path.write_text("path,subject,split,split\n")
    with pytest.raises(InputError, match="the table has the column 'split' twice"):
        read_cohort(path)
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "none.csv", ["path"])
