"""The file: everything comes back; nothing else is believed."""

from __future__ import annotations

import tracemalloc

import pytest

from scanfield.codec.container import Section, pack, read_container, read_head, read_section, write_container
from scanfield.errors import InputError

HEADER = {"method": "siren", "n": [1, 2.5, None, "µm"]}
SECTIONS = (Section("weights", 1, bytes(range(200))), Section("tensor/rows", 3, b""), Section("rest", 200, b"\xff" * 9))


@pytest.fixture
def path(tmp_path):
    write_container(tmp_path / "a.sfz", HEADER, SECTIONS)
    return tmp_path / "a.sfz"


def test_everything_comes_back(path):
    back = read_container(path)
    assert back.header == HEADER and back.sections == SECTIONS
    assert back.section("rest") == SECTIONS[2]
    with pytest.raises(InputError, match="no part 'other'"):
        back.section("other")


def test_size_and_bytes_are_stated(path):
    content = path.read_bytes()
    assert write_container(path, HEADER, SECTIONS) == len(content)
    assert path.read_bytes() == content == pack(HEADER, SECTIONS)
    assert content[:4] == b"SFZ\x01"


def test_the_head_can_be_read_alone_and_then_one_section(path):
    head = read_head(path)
    assert head.header == HEADER and head.size + sum(e.size for e in head.entries) == path.stat().st_size
    content = bytearray(path.read_bytes())
    content[head.entries[0].start] ^= 1  # damage in another section does not matter
    path.write_bytes(content)
    assert read_section(path, read_head(path).entries[2]) == SECTIONS[2]
    with pytest.raises(InputError, match="'weights'"):
        read_section(path, head.entries[0])


def test_every_altered_byte_is_found(path):
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])
        with pytest.raises(InputError):
            read_container(path)


def test_every_truncation_is_found(path):
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            read_container(path)
    path.write_bytes(content + b"x")
    with pytest.raises(InputError, match="truncated or damaged"):
        read_container(path)


def test_newer_schema_names_the_way_out(path):
    content = bytearray(path.read_bytes())
    content[3] = 9
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"schema 9(.|\n)*upgrade"):
        read_head(path)


@pytest.mark.parametrize("content", [b"", b"SFZ", b"PK\x03\x04" + b"0" * 40, b"SFZ\x01\xff\xff\xff\xff" + b"0" * 40])
def test_other_files_are_refused_without_taking_memory(path, content):
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError):
        read_container(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_names(tmp_path):
    with pytest.raises(InputError, match=r"\.sfz"):
        write_container(tmp_path / "a.zip", HEADER, SECTIONS)
    with pytest.raises(ValueError, match="distinct"):
        pack({}, [SECTIONS[0], SECTIONS[0]])
    with pytest.raises(InputError, match="no such file"):
        read_head(tmp_path / "missing.sfz")
