from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import nn

from scanfield.errors import InputError
from scanfield.fitting.state import adopt_parameters, load_state, save_state

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b/c": torch.tensor(7),
    "empty": torch.zeros(0, 2),
    "t": torch.ones(2, 3).T,
}
FACTS = {"kind": "thing", "schema": 2, "text": "μ", "number": 0.1}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_state(tmp_path / "x.safetensors", TENSORS, FACTS)
    return tmp_path / "x.safetensors"


def load(path: Path, **more):
    return load_state(path, **({"kind": "thing", "schema": 2} | more))


def test_round_trip(file):
    tensors, facts = load(file)
    assert facts == FACTS and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_gradients_and_graphs_are_not_saved(tmp_path):
    save_state(tmp_path / "x", {"p": nn.Parameter(torch.ones(2))}, FACTS)
    assert not load(tmp_path / "x")[0]["p"].requires_grad


def test_a_failing_write_leaves_the_old_file(file):
    before = file.read_bytes()
    with pytest.raises(TypeError):
        save_state(file, TENSORS, FACTS | {"cannot": object()})
    assert file.read_bytes() == before and len(list(file.parent.iterdir())) == 1


@pytest.mark.parametrize("keep", [0, 3, 7, 8, 60, 200, -1, -20])
def test_truncated(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        load(file)
    assert caught.value.where == str(file)


@pytest.mark.parametrize("announced", [2**60, 2**63 + 5, 2**64 - 1, 10**9, 64 * 2**20 + 1])
def test_a_hostile_header_length_is_refused_at_once(file, announced):
    file.write_bytes(struct.pack("<Q", announced) + file.read_bytes()[8:])
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(InputError, match="header announces"):
        load(file)
    assert time.perf_counter() - start < 0.5 and tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def with_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 200_000,
        b"{}",
        b"null",
        b"not json at all",
        b'{"__metadata__": {"scanfield": "{"}}',
        b'{"__metadata__": {"scanfield": "[]"}}',
        b'{"__metadata__": {"scanfield": "null"}}',
        b'{"__metadata__": {"scanfield": "{\\"kind\\": \\"thing\\"}"}}',
        b'{"__metadata__": {"scanfield": "{\\"kind\\": \\"thing\\", \\"schema\\": \\"x\\"}"}}',
        b'{"__metadata__": {"scanfield": "{\\"kind\\": \\"thing\\", \\"schema\\": Infinity}"}}',
        b'{"__metadata__": {"scanfield": "' + b"[" * 100_000 + b'"}}',
        b'{"a": {"dtype": "F32", "shape": [1152921504606846976], "data_offsets": [0, 4611686018427387904]}}',
        b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}',
    ],
    ids=lambda h: h[:60].decode(),
)
def test_hostile_headers(tmp_path, header):
    tracemalloc.start()
    with pytest.raises(InputError):
        load(with_header(tmp_path / "x", header))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_altered_contents(file):
    content = bytearray(file.read_bytes())
    for place in range(8, 300, 7):
        damaged = content.copy()
        damaged[place] ^= 0x41
        file.write_bytes(damaged)
        try:
            load(file)
        except InputError:
            continue  # anything but an InputError fails; a changed letter of a fact may go unnoticed


def test_a_pickle_is_not_opened(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x")
    with pytest.raises(InputError):
        load(tmp_path / "x")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="no thing file"):
            load(path)


def test_one_altered_weight_is_noticed(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="altered"):
        load(file)


def test_another_kind(file):
    with pytest.raises(InputError, match="expected a field file, found a thing"):
        load(file, kind="field")


def test_newer_schema_names_the_fix(file):
    with pytest.raises(InputError, match="schema 2") as caught:
        load(file, schema=1)
    assert "upgrade" in caught.value.fix


def test_migrations_run_in_order(tmp_path):
    save_state(tmp_path / "old", {"x": torch.ones(1)}, FACTS | {"schema": 0, "path": []})
    steps = {n: lambda t, facts, n=n: ({f"x{n}": t["x"], **t}, facts | {"path": [*facts["path"], n]}) for n in (0, 1)}
    tensors, facts = load(tmp_path / "old", migrations=steps)
    assert facts["path"] == [0, 1] and sorted(tensors) == ["x", "x0", "x1"]


@pytest.mark.parametrize("schema", [-5, 0])
def test_a_schema_nobody_wrote(tmp_path, schema):
    save_state(tmp_path / "old", {}, FACTS | {"schema": schema})
    with pytest.raises(InputError, match="no version"):
        load(tmp_path / "old", migrations={1: dict})


def test_adopt_parameters():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3, 1))]
    adopt_parameters(parameters, [torch.ones(2), torch.full((3, 1), 2.0)], "here")
    assert parameters[0].tolist() == [1, 1] and parameters[1].requires_grad
    for wrong in ([torch.ones(2)], [torch.ones(2), torch.ones(1, 3)], []):
        with pytest.raises(InputError, match="another model"):
            adopt_parameters(parameters, wrong, "here")


def test_facts_are_json_in_the_header(file):
    header = json.loads(file.read_bytes()[8 : 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]])
    assert json.loads(header["__metadata__"]["scanfield"]) == FACTS
