"""The weights of a network <-> sections of a file: quantised, one step a group of tensors, entropy coded.

Groups: with `tail` = 0 every tensor has its own step and table; with `tail` = k all tensors whose names end in the same
k dotted parts share them (`blocks.3.layers.0.weight` and `blocks.4.layers.0.weight` with k = 3), because a table costs
about six bytes. Numbers that are not floating-point keep their values.

Which group deserves how many bits is chosen by Lagrange's rule: while the file is too large, the group is coarsened
whose next rung costs the least distortion per bit saved (Shoham & Gersho, IEEE Trans. ASSP 36:1445, 1988). Errors of
different groups are taken to add up, as they do while they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from scanfield.codec.container import Section
from scanfield.codec.entropy import cost_bits, decode_integers, encode_integers
from scanfield.codec.quantise import HIGHEST_RUNG, dequantise, quantise, rung_for_bits
from scanfield.codec.varint import Reader, Writer
from scanfield.errors import InputError

QUANTISED, EXACT = 1, 2  # kinds of sections
WEIGHTS, NUMBERS = "weights", "numbers"  # their names
COARSER = 2  # rungs: half a bit a number
FINEST_BITS, COARSEST_BITS = 12, 2

State = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def groups_of(state: State, tail: int = 0) -> dict[str, list[str]]:
    """The names of the floating-point tensors by group, in the order of the state."""
    groups: dict[str, list[str]] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            groups.setdefault(group_of(name, tail), []).append(name)
    return groups


def group_of(name: str, tail: int = 0) -> str:
    """The group of a tensor: its name, or the last `tail` parts of it."""
    return name if tail == 0 else ".".join(name.split(".")[-tail:])


def rungs_for_bits(state: State, bits: int, *, tail: int = 0) -> dict[str, int]:
    """For every group the finest rung with which its largest number fits `bits` bits (2..16).

    Raises:
        InputError: `bits` is out of range.
    """
    return {
        group: rung_for_bits(max(float(state[name].abs().max()) for name in names if state[name].numel()), bits)
        for group, names in groups_of(state, tail).items()
        if any(state[name].numel() for name in names)
    }


def choose_rungs(
    state: State, max_bytes: int, distortion: Callable[[dict[str, Tensor]], float], *, tail: int = 0
) -> dict[str, int]:
    """Rungs with which the sections of `encode_weights` take at most `max_bytes`, with the least distortion.

    Args:
        distortion: the error (to be small, additive: a squared error) of a state whose weights were changed.

    Raises:
        InputError: not even 2 bits a number fit.
    """
    names = groups_of(state, tail)
    rungs = rungs_for_bits(state, FINEST_BITS, tail=tail)
    coarsest = rungs_for_bits(state, COARSEST_BITS, tail=tail)
    costs: dict[tuple[str, int], tuple[float, float]] = {}

    def cost(group: str, rung: int) -> tuple[float, float]:
        """(bits, distortion) of one group on a rung, all others unchanged."""
        if (group, rung) not in costs:
            bits = cost_bits(np.concatenate([quantise(state[name], rung) for name in names[group]]))
            costs[group, rung] = bits, distortion(quantised(state, {group: rung}, tail=tail))
        return costs[group, rung]

    def next_rung(group: str) -> int:
        return min(rungs[group] + COARSER, coarsest[group])

    def price(group: str) -> float:
        """Distortion per bit saved by the next rung."""
        (bits, error), (fewer, more) = cost(group, rungs[group]), cost(group, next_rung(group))
        return (more - error) / max(bits - fewer, 1e-9)

    fixed = size_of(state, rungs, tail=tail) - sum(cost(group, rung)[0] for group, rung in rungs.items()) / 8
    while True:
        estimate = fixed + sum(cost(group, rung)[0] for group, rung in rungs.items()) / 8
        if estimate <= max_bytes and size_of(state, rungs, tail=tail) <= max_bytes:
            return _filled(state, rungs, max_bytes, tail)
        open_groups = [group for group in rungs if rungs[group] < coarsest[group]]
        if not open_groups:
            raise _too_small(state, max_bytes, coarsest, tail)
        cheapest = min(open_groups, key=price)
        rungs[cheapest] = next_rung(cheapest)


def coarsened(state: State, rungs: Mapping[str, int], max_bytes: int, *, tail: int = 0) -> dict[str, int]:
    """The rungs, or (where weights have changed since they were chosen) all of them coarser until `max_bytes` suffice.

    Raises:
        InputError: as for `choose_rungs`.
    """
    found, coarsest = dict(rungs), rungs_for_bits(state, COARSEST_BITS, tail=tail)
    while size_of(state, found, tail=tail) > max_bytes:
        finer = [group for group in found if found[group] < coarsest[group]]
        if not finer:
            raise _too_small(state, max_bytes, coarsest, tail)
        sizes = {g: sum(state[name].numel() for name in names) for g, names in groups_of(state, tail).items()}
        largest = max(finer, key=lambda g: (sizes[g], rungs[g] - found[g]))  # groups of one size take turns
        found[largest] += 1
    return found


def _too_small(state: State, max_bytes: int, coarsest: Mapping[str, int], tail: int) -> InputError:
    return InputError(
        f"{sum(t.numel() for t in state.values())} weights do not fit {max_bytes} bytes",
        fix=f"allow at least {size_of(state, coarsest, tail=tail)} bytes for them, or fit a smaller network",
    )


def _filled(state: State, rungs: dict[str, int], max_bytes: int, tail: int) -> dict[str, int]:
    """Single rungs back while they fit, the groups of the most numbers last: they would take what is left at once."""
    groups = groups_of(state, tail)
    for group in sorted(rungs, key=lambda g: sum(state[name].numel() for name in groups[g])):
        finer = rungs | {group: rungs[group] - 1}
        if size_of(state, finer, tail=tail) <= max_bytes:
            rungs = finer
    return rungs


def encode_weights(state: State, rungs: Mapping[str, int], *, tail: int = 0) -> list[Section]:
    """The sections that hold a state; the same on every machine.

    Args:
        rungs: the rung of every group of `groups_of(state, tail)` that has numbers.

    Raises:
        InputError: a weight is NaN or infinite.
    """
    out, integers = Writer(), []
    out.unsigned(tail)
    for group, names in groups_of(state, tail).items():
        if group in rungs:
            out.signed(rungs[group])
            integers.append(np.concatenate([quantise(state[name], rungs[group]) for name in names]))
    out.block(encode_integers(integers))
    sections = [Section(WEIGHTS, QUANTISED, bytes(out.content))]
    whole = [t.detach().cpu().long().numpy().reshape(-1) for t in state.values() if not t.is_floating_point()]
    if whole:
        sections.append(Section(NUMBERS, EXACT, encode_integers(whole)))
    return sections


def decode_weights(sections: list[Section], shapes: Shapes, *, where: str = "") -> dict[str, Tensor]:
    """The state that `encode_weights` turned into sections; other sections may be among them.

    Args:
        shapes: type and shape of every tensor, in the order of the state: they are not stored.

    Raises:
        InputError: the sections are damaged, or belong to other shapes.
    """
    found = {section.name: section for section in sections if section.name in (WEIGHTS, NUMBERS)}
    if WEIGHTS not in found or found[WEIGHTS].kind != QUANTISED:
        raise InputError("the file holds no weights", where=where)
    source = Reader(found[WEIGHTS].payload, where)
    tail = source.unsigned()
    like = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in shapes.items()}
    groups = {group: names for group, names in groups_of(like, tail).items() if any(like[n].numel() for n in names)}
    rungs = [source.signed() for _ in groups]
    if any(not -128 <= rung <= 127 for rung in rungs):
        raise InputError("the file is damaged: it names a step that does not exist", where=where)
    counts = [sum(like[name].numel() for name in names) for names in groups.values()]
    integers = decode_integers(source.rest(), counts, where=where)
    state = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in like.items()}
    for names, rung, values in zip(groups.values(), rungs, integers, strict=True):
        parts = np.split(values, np.cumsum([like[name].numel() for name in names])[:-1])
        for name, part in zip(names, parts, strict=True):
            state[name] = dequantise(part, rung, tuple(like[name].shape)).to(like[name].dtype)
    whole = [name for name, tensor in like.items() if not tensor.is_floating_point()]
    if whole:
        if NUMBERS not in found:
            raise InputError("the file lacks numbers that its field needs", where=where)
        counts = [like[name].numel() for name in whole]
        for name, values in zip(whole, decode_integers(found[NUMBERS].payload, counts, where=where), strict=True):
            state[name] = torch.from_numpy(values).reshape(like[name].shape).to(like[name].dtype)
    return state


def quantised(state: State, rungs: Mapping[str, int], *, tail: int = 0) -> dict[str, Tensor]:
    """The state as it will be after writing and reading."""
    out = dict(state)
    for group, names in groups_of(state, tail).items():
        if group in rungs:
            for name in names:
                shape = tuple(state[name].shape)
                out[name] = dequantise(quantise(state[name], rungs[group]), rungs[group], shape).to(state[name])
    return out


def exact_rungs(state: State, *, tail: int = 0) -> dict[str, int] | None:
    """The coarsest rungs that keep every weight as it is, bit for bit; None if a group was never quantised."""
    rungs = {}
    for group, names in groups_of(state, tail).items():
        numbers = [state[name] for name in names if state[name].numel()]
        largest = max((float(tensor.abs().max()) for tensor in numbers), default=0.0)
        if not numbers:
            continue
        finest = rung_for_bits(largest, 16)
        # Where all numbers are 0 or one step, this step is up to 1.5 times (2.3 rungs) what two bits would need.
        for rung in range(min(rung_for_bits(largest, COARSEST_BITS) + 3, HIGHEST_RUNG), finest - 1, -1):
            kept = all(torch.equal(quantised({"w": w}, {"w": rung})["w"], w) for w in numbers)
            if kept:
                rungs[group] = rung
                break
        else:
            return None
    return rungs


def size_of(state: State, rungs: Mapping[str, int], *, tail: int = 0) -> int:
    """Bytes of the sections of `encode_weights`."""
    return sum(len(section.payload) for section in encode_weights(state, rungs, tail=tail))


def shapes_of(state: State) -> Shapes:
    """What `decode_weights` needs to know of a state."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
