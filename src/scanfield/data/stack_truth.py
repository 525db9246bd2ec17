"""What is known about simulated stacks, in a JSON file beside them: the pose of every slice, and which are spoilt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.data.guard import existing_file, located
from scanfield.data.slices import SliceSet
from scanfield.data.write import write_atomically
from scanfield.errors import InputError

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class StackTruth:
    """The truth about one stack.

    Args:
        file: name of the stack's file.
        poses: (slices, 4, 4) float64, slice frame -> world of the true volume (see `data.stacks`).
        outliers: the spoilt slices, by number, and how they were spoilt.
        shots: the shot of each slice.
    """

    file: str
    poses: np.ndarray
    outliers: dict[int, str]
    shots: tuple[int, ...]


def write_truth(path: str | Path, stacks: Sequence[StackTruth], provenance: dict[str, Any]) -> None:
    """Writes the truth about stacks that lie in the same folder; `provenance` says where they come from."""
    facts = {
        "schema": SCHEMA,
        **provenance,
        "poses": "4x4, frame of the slice (mm, origin in its middle) -> world of the volume (mm, RAS+)",
        "stacks": [
            {
                "file": stack.file,
                "shots": list(stack.shots),
                "outliers": {str(number): how for number, how in stack.outliers.items()},
                "poses": stack.poses.tolist(),
            }
            for stack in stacks
        ],
    }
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read_truth(path: str | Path) -> list[StackTruth]:
    """Reads what `write_truth` wrote.

    Raises:
        InputError: there is no such file, or it is not of this kind.
    """
    with located(path):
        try:
            facts = json.loads(existing_file(path).read_text(encoding="utf-8"))
            if facts["schema"] != SCHEMA:
                raise InputError(f"schema {facts['schema']} is not known; this version reads {SCHEMA}")
            stacks = [
                StackTruth(
                    file=str(entry["file"]),
                    poses=np.asarray(entry["poses"], dtype=np.float64).reshape(-1, 4, 4),
                    outliers={int(number): str(how) for number, how in entry["outliers"].items()},
                    shots=tuple(int(shot) for shot in entry["shots"]),
                )
                for entry in facts["stacks"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this file does not hold the truth about stacks: {error!r}") from None
    return stacks


def truth_of(slices: SliceSet, truth: Sequence[StackTruth]) -> tuple[Float[Tensor, "n 4 4"], Bool[Tensor, " n"]]:
    """The true poses of a set's slices, and which of them are spoilt. Stacks are found by the names of their files.

    Raises:
        InputError: a stack or a slice is not in the truth.
    """
    known = {stack.file: stack for stack in truth}
    poses, spoilt = [], []
    for index, number in zip(slices.stack_index.tolist(), slices.number.tolist(), strict=True):
        name = Path(slices.sources[index]).name
        if name not in known or number >= len(known[name].poses):
            raise InputError(
                f"the truth says nothing about slice {number} of {name}", fix="give the truth.json beside it"
            )
        poses.append(known[name].poses[number])
        spoilt.append(number in known[name].outliers)
    return torch.from_numpy(np.stack(poses)), torch.tensor(spoilt)
