"""Tensors and facts in one safetensors file: nothing pickled, written atomically, read with suspicion.

The file's header holds the facts as one JSON string under the key 'scanfield', and the SHA-256 of facts and tensors
under 'sha256'; `schema` in the facts is the version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scanfield.data.write import write_atomically
from scanfield.errors import InputError

_MAX_HEADER_BYTES = 64 * 2**20

State = tuple[dict[str, Tensor], dict[str, Any]]
Migration = Callable[[dict[str, Tensor], dict[str, Any]], State]


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes tensors and JSON-able facts (with a 'schema' number) to one file."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    content = save(flat, metadata={"scanfield": text, "sha256": _digest(flat, text)})
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def load_state(path: Path, *, kind: str, schema: int, migrations: dict[int, Migration] | None = None) -> State:
    """Reads a file of `save_state`.

    Args:
        kind: expected facts['kind'].
        schema: the newest schema this version reads.
        migrations: schema n -> function that turns tensors and facts of schema n into those of n + 1.

    Raises:
        InputError: the file is missing, truncated, altered, of another kind, or of a newer schema.
    """
    where = str(path)
    if not path.is_file():
        raise InputError(f"there is no {kind} file", where=where)
    with path.open("rb") as file:
        announced = int.from_bytes(file.read(8), "little")
    if announced > min(_MAX_HEADER_BYTES, path.stat().st_size):
        raise InputError(
            f"the file is truncated or is not a {kind}: its header announces {announced} bytes", where=where
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"the {kind} file is truncated or altered: {error}", where=where) from None
    try:
        facts = json.loads(metadata["scanfield"])
        found_kind, found = str(facts["kind"]), int(facts["schema"])
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        raise InputError("the file was not written by scanfield", where=where) from None
    if found_kind != kind:
        raise InputError(f"expected a {kind} file, found a {found_kind}", where=where)
    if found > schema:
        raise InputError(
            f"the {kind} file has schema {found}; this version reads up to {schema}",
            where=where,
            fix="pip install --upgrade scanfield",
        )
    if metadata.get("sha256") != _digest(tensors, metadata["scanfield"]):
        raise InputError(f"the {kind} file was altered: its checksum does not fit its content", where=where)
    while found < schema:
        migrate = (migrations or {}).get(found)
        if migrate is None:
            raise InputError(f"the {kind} file has schema {found}, which no version of scanfield wrote", where=where)
        tensors, facts = migrate(tensors, facts)
        found += 1
    return tensors, facts


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def adopt_parameters(parameters: list[torch.nn.Parameter], tensors: list[Tensor], where: str) -> None:
    """Copies saved values into parameters; shapes must agree."""
    if [tuple(p.shape) for p in parameters] != [tuple(t.shape) for t in tensors]:
        raise InputError(
            "the saved state belongs to another model: its parameter shapes differ",
            where=where,
            fix="resume with the configuration the run was started with",
        )
    with torch.no_grad():
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter.copy_(tensor)
