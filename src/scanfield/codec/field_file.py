"""A fitted field as an `.sfz` file: configuration and spec in the header, quantised weights in the payload.

    header     method, config, spec (its domain as one word where it is the grid's own box), facts of the caller; with
               a trained model: its key, and of the configuration what differs from the model's
    weights    see `codec.weights`
    tensor/... the result's further tensors, exactly

Weights that a model holds are not in the file: such a file is read with the model of the same key. Any other file
needs nothing but itself. The decoder builds the method's field from configuration and spec and loads the weights.
Weights are the same bits on every machine; the values that a field computes from them agree between machines and
devices up to the rounding of float32 arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from scanfield.codec.container import Container, Section, pack, read_container, read_head, write_container
from scanfield.codec.entropy import decode_integers, encode_integers
from scanfield.codec.mask import decode_mask, encode_mask
from scanfield.codec.varint import Reader, Writer
from scanfield.codec.weights import (
    NUMBERS,
    WEIGHTS,
    choose_rungs,
    decode_weights,
    encode_weights,
    rungs_for_bits,
    shapes_of,
)
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import from_json, to_json
from scanfield.run import Run
from scanfield.space.domain import Domain, Scaling
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model
from scanfield.tasks.result import Bounded, Reconstruction, Spec

DEFAULT_BITS = 10
TENSOR, MASK = 3, 4  # kinds of sections
_PROBES = 2**15
_TYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool)


@dataclass(frozen=True)
class RateReport:
    """Where the bytes of a file are.

    Args:
        parts: name and bytes of every part; they sum to the file's size.
        voxels: of the field's own grid.
    """

    parts: tuple[tuple[str, int], ...]
    voxels: int

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return sum(size for _, size in self.parts)

    @property
    def bits_per_voxel(self) -> float:
        return 8 * self.total / self.voxels


def write_field(
    path: str | Path,
    result: Reconstruction,
    *,
    max_bytes: int | None = None,
    bits: int | None = None,
    rungs: Mapping[str, int] | None = None,
    tail: int = 0,
    distortion: Callable[[dict[str, Tensor]], float] | None = None,
    facts: dict[str, Any] | None = None,
    sections: Sequence[Section] = (),
    model: Model | None = None,
) -> RateReport:
    """Writes a result; at most one of `max_bytes`, `bits` and `rungs` says how finely (default: 10 bits a number).

    Args:
        max_bytes: of the whole file; steps are chosen by rate and distortion (`codec.weights.choose_rungs`).
        bits: of every number, 2..16.
        rungs: the steps themselves, by group.
        tail: which tensors share a step (see `codec.weights`).
        distortion: error of a state of the field; by default the mean square change of the field's values at random
            points of its grid.
        facts: anything JSON-able that the header should carry too.
        sections: further sections of the file; they count.
        model: the trained model of the result, whose weights are left out.

    Raises:
        InputError: the budget is too small (the message says what is needed), or the file cannot be written.
    """
    if sum(choice is not None for choice in (max_bytes, bits, rungs)) > 1:
        raise ValueError("only one of max_bytes, bits and rungs can be given")
    state = own_weights(result, model)
    if max_bytes is not None:
        left = weight_budget(result, max_bytes, facts=facts, sections=sections, model=model)
        if left <= 0:
            raise InputError(
                f"{max_bytes} bytes do not even hold the file's header, which takes {max_bytes - left}",
                where=str(path),
                fix="allow more bytes",
            )
        rungs = choose_rungs(state, left, distortion or value_change(result), tail=tail)
    elif rungs is None:
        rungs = rungs_for_bits(state, DEFAULT_BITS if bits is None else bits, tail=tail)
    content = container_of(result, rungs, tail=tail, facts=facts, sections=sections, model=model)
    write_container(path, content.header, content.sections)
    return rate_report(path)


def container_of(
    result: Reconstruction,
    rungs: Mapping[str, int],
    *,
    tail: int = 0,
    facts: dict[str, Any] | None = None,
    sections: Sequence[Section] = (),
    model: Model | None = None,
) -> Container:
    """What `write_field` writes: header and sections of a result whose weights are written on these rungs."""
    state = own_weights(result, model)
    tensors = (_tensor_section(name, t) for name, t in result.tensors.items())
    weights = encode_weights(state, rungs, tail=tail)
    return Container(_header(result, facts or {}, model), (*weights, *tensors, *sections))


def own_weights(result: Reconstruction, model: Model | None = None) -> dict[str, Tensor]:
    """The weights of a result's field that its file holds: all that are not the model's."""
    others = set() if model is None else set(model.tensors)
    return {name: t.detach() for name, t in result.field.state_dict().items() if name not in others}


def read_field(path: str | Path, device: torch.device | str = "cpu", *, model: Model | None = None) -> Reconstruction:
    """The result in a file of `write_field`; its field has the quantised weights, `provenance` the header's facts.

    Args:
        model: the model the file was written with, if it was written with one.

    Raises:
        InputError: the file is missing, damaged, of a newer schema or of an unknown method; it needs another model.
    """
    return field_of(read_container(path), device, where=str(path), model=model)


def field_of(
    content: Container, device: torch.device | str = "cpu", *, where: str = "", model: Model | None = None
) -> Reconstruction:
    """`read_field` of a file that is in memory."""
    try:
        name, settings, spec = str(content.header["method"]), content.header["config"], _spec(content.header["spec"])
        facts = dict(content.header.get("facts", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the file's header describes no field: {error!r}", where=where) from None
    check_key(content.header, model, where)
    module = api.load(name)
    base, given = (None, {}) if model is None else (model.config, model.tensors)
    config = from_json(module.Config, settings, base=base, where=f"{where}: config")
    size = sum(t.numel() for t in given.values()) + sum(len(section.payload) for section in content.sections)
    try:
        with Bounded(numbers=2**22 + 1024 * size, calls=10_000 + 16 * size):
            field: nn.Module = module.build(config, spec)
    except (RuntimeError, KeyError, TypeError, ValueError, IndexError) as error:
        what = f"the file's header describes a field that its bytes cannot hold: {error}"
        raise InputError(what, where=where) from None
    shapes = shapes_of(field.state_dict())
    coded = decode_weights(list(content.sections), {n: s for n, s in shapes.items() if n not in given}, where=where)
    field.load_state_dict(coded | {name: t for name, t in given.items() if name in shapes})
    return Reconstruction(
        method=name,
        config=config,
        spec=spec,
        field=field.to(device),
        tensors=_tensors(content, where),
        provenance=facts,
    )


def rate_report(path: str | Path) -> RateReport:
    """Where the bytes of a file are; reads its head only.

    Raises:
        InputError: the file is missing, damaged, of a newer schema, or holds no field.
    """
    head = read_head(path)
    try:
        voxels = math.prod(int(n) for n in head.header["spec"]["grid"]["shape"])
    except (KeyError, TypeError, ValueError):
        raise InputError("the file's header describes no field", where=str(path)) from None
    return RateReport((("header", head.size), *((entry.name, entry.size) for entry in head.entries)), voxels)


def check_key(header: Mapping[str, Any], model: Model | None, where: str) -> None:
    """Raises `InputError` if the file of this header needs a model and has none, needs none, or needs another."""
    needed = header.get("model")
    if needed is None and model is not None:
        raise InputError("this file needs no model: everything is in it", where=where, fix="leave out --model")
    if needed is not None and model is None:
        what = f"this file needs the model {needed} of '{header.get('method')}': the shared network is not in it"
        raise InputError(what, where=where, fix="give the model it was written with: --model MODEL")
    if model is not None and needed != model.key:
        raise InputError(
            f"this file was written with the model {needed}, this one is {model.key}",
            where=where,
            fix="give the model it was written with: --model MODEL",
        )


def weight_budget(
    result: Reconstruction,
    max_bytes: int,
    *,
    facts: dict[str, Any] | None = None,
    sections: Sequence[Section] = (),
    model: Model | None = None,
) -> int:
    """Bytes that a file of `max_bytes` has left for the weights; negative if the rest alone is larger."""
    empty = [Section(WEIGHTS, 0, b""), Section(NUMBERS, 0, b"")]
    others = [*(_tensor_section(name, t) for name, t in result.tensors.items()), *sections]
    header = _header(result, facts or {}, model)
    return max_bytes - len(pack(header, [*empty, *others])) - 4  # a length has up to 3 bytes


def value_change(result: Reconstruction) -> Callable[[dict[str, Tensor]], float]:
    """Distortion of a state of a result's field: the mean square change of its values at random voxels of its grid."""
    device = next(result.field.parameters()).device
    grid = result.spec.grid
    index = torch.arange(grid.size)
    if grid.size > _PROBES:
        index = torch.randint(grid.size, (_PROBES,), generator=Run().generator("probes"))
    x = grid.to_world(grid.voxels(index).double()).float().to(device)
    with torch.no_grad():
        before = result.field(x)

    def change(state: dict[str, Tensor]) -> float:
        with torch.no_grad():
            after: Tensor = torch.func.functional_call(result.field, state, (x,))
        return float((after - before).square().mean())

    return change


def _header(result: Reconstruction, facts: dict[str, Any], model: Model | None = None) -> dict[str, Any]:
    spec = result.spec.to_json()
    for scaling in get_args(Scaling):
        if Domain.of_grid(result.spec.grid, scaling=scaling).to_json() == spec["domain"]:
            spec["domain"] = scaling
            break
    config, known = to_json(result.config), {} if model is None else to_json(model.config)
    config = {name: value for name, value in config.items() if name not in known or known[name] != value}
    header = {"method": result.method, "config": config, "spec": spec}
    return header | ({} if model is None else {"model": model.key}) | ({"facts": facts} if facts else {})


def _spec(facts: dict[str, Any]) -> Spec:
    if not isinstance(facts["domain"], str):
        return Spec.from_json(facts)
    for scaling in get_args(Scaling):
        if facts["domain"] == scaling:
            domain = Domain.of_grid(Grid.from_json(facts["grid"]), scaling=scaling)
            return Spec.from_json(facts | {"domain": domain.to_json()})
    raise ValueError(f"unknown scaling '{facts['domain']}'")


def _tensor_section(name: str, tensor: Tensor) -> Section:
    """Type, number of axes, sizes, then the numbers: integers entropy coded, others as they are in memory."""
    if tensor.dtype == torch.bool and tensor.ndim == 3 and tensor.numel():
        return Section(f"tensor/{name}", MASK, encode_mask(tensor))
    if tensor.dtype not in _TYPES:
        raise ValueError(f"a tensor of type {tensor.dtype} cannot be stored")
    values, out = tensor.detach().cpu().contiguous(), Writer()
    out.unsigned(_TYPES.index(tensor.dtype))
    out.unsigned(values.ndim)
    for n in values.shape:
        out.unsigned(n)
    if values.is_floating_point():
        array = values.numpy()
        out.block(array.astype(array.dtype.newbyteorder("<")).tobytes())
    else:
        out.block(encode_integers([values.long().numpy().reshape(-1)]))
    return Section(f"tensor/{name}", TENSOR, bytes(out.content))


def _tensors(content: Container, where: str) -> dict[str, Tensor]:
    return {
        section.name.removeprefix("tensor/"): _tensor(section, where)
        for section in content.sections
        if section.kind in (TENSOR, MASK) and section.name.startswith("tensor/")
    }


def _tensor(section: Section, where: str) -> Tensor:
    if section.kind == MASK:
        return decode_mask(section.payload, where=where)
    source = Reader(section.payload, where)
    kind, axes = source.unsigned(), source.unsigned()
    damaged = InputError(f"the file is damaged: its part '{section.name}' holds no tensor", where=where)
    if kind >= len(_TYPES) or axes > 8:
        raise damaged
    dtype, shape = _TYPES[kind], tuple(source.unsigned() for _ in range(axes))
    count = math.prod(shape)
    if not dtype.is_floating_point:
        if count > 2**22 + 1024 * len(section.payload):
            raise damaged
        (values,) = decode_integers(source.rest(), [count], where=where)
        return torch.from_numpy(values).reshape(shape).to(dtype)
    size = torch.empty((), dtype=dtype).element_size()
    if source.left != count * size:
        raise damaged
    array = np.frombuffer(source.rest(), np.dtype(f"<f{size}"))
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).reshape(shape)
