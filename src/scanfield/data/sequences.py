"""Time-lapse masks: where an object is at every moment of a sequence.

On disk a sequence is one NIfTI image of four axes, the fourth being time with its step in the header (`pixdim[4]`);
one of its two values, the larger, marks the object. In a cohort it stands in the column `path`.

A sequence lasts from its first frame to its last. Sequences of a cohort may lie on different grids and have different
numbers of frames, but all last equally long: a moment means the same in each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.data.cohort import Cohort
from scanfield.data.guard import located
from scanfield.data.nifti import nifti_layout, read_nifti, write_nifti
from scanfield.errors import InputError
from scanfield.space.grid import Grid


@dataclass(frozen=True, eq=False)
class MaskSequence:
    """The masks of one object at regular moments.

    Args:
        frames: (t, n0, n1, n2) bool, at least two frames, none of them empty.
        grid: where the voxels of every frame are.
        step_s: time from one frame to the next.
        source: name of the file, for messages.
    """

    frames: Bool[Tensor, "t n0 n1 n2"]
    grid: Grid
    step_s: float
    source: str = ""

    kind = "mask-sequence"

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or tuple(self.frames.shape[1:]) != self.grid.shape:
            what = f"frames of shape {tuple(self.frames.shape)} do not fit a grid of shape {self.grid.shape}"
            raise InputError(what, where=self.source)
        if len(self.frames) < 2:
            raise InputError("a sequence needs at least two frames", where=self.source)
        if min(self.grid.shape) < 2:
            raise InputError(f"a sequence shows volumes, not images of {self.grid.shape}", where=self.source)
        if not (np.isfinite(self.step_s) and self.step_s > 0):
            raise InputError(f"the time between frames must be positive, got {self.step_s} s", where=self.source)
        empty = torch.nonzero(~self.frames.flatten(1).any(dim=1))[:, 0].tolist()
        if empty:
            raise InputError(
                f"frame {empty[0]} of {len(self.frames)} is empty: nothing says where the object is",
                where=self.source,
                fix="crop the sequence to the frames that show the object",
            )

    @property
    def duration_s(self) -> float:
        """From the first frame to the last."""
        return (len(self.frames) - 1) * self.step_s

    @property
    def times_s(self) -> Float[np.ndarray, " t"]:
        """The moment of every frame, 0 for the first."""
        return np.arange(len(self.frames)) * self.step_s

    @property
    def centre_mm(self) -> Float[np.ndarray, " 3"]:
        """Centre of mass of the object over all frames, every voxel of every frame counting the same."""
        inside = torch.nonzero(self.frames)[:, 1:].double().mean(dim=0)
        return np.asarray(self.grid.to_world(inside))

    def every(self, step: int, start: int = 0) -> MaskSequence:
        """Frames start, start + step, ... of this sequence, which keep their distances in time."""
        return replace(self, frames=self.frames[start::step], step_s=step * self.step_s)

    def part(self, first: Sequence[int], shape: Sequence[int]) -> MaskSequence:
        """The frames on voxels first + k, 0 <= k < shape. These may lie beyond the image, where there is no object."""
        low, high = np.maximum(first, 0), np.minimum(np.add(first, shape), self.grid.shape)
        frames = torch.zeros(len(self.frames), *shape, dtype=torch.bool)
        here = tuple(slice(a - c, max(b, a) - c) for a, b, c in zip(low, high, first, strict=True))
        there = tuple(slice(a, max(b, a)) for a, b in zip(low, high, strict=True))
        frames[(slice(None), *here)] = self.frames[(slice(None), *there)]
        return replace(self, frames=frames, grid=self.grid.part(first, shape))


def read_sequence(path: str | Path) -> MaskSequence:
    """The sequence in a NIfTI file.

    Raises:
        InputError: the file cannot be read (see `data.nifti.read_nifti`), has no fourth axis or no time step, has more
            or fewer than two values, or a frame without the object.
    """
    with located(path):
        layout = nifti_layout(path)
        if len(layout.shape) != 4:
            raise InputError(
                "a sequence has four axes, the fourth being time; this image shows one moment",
                fix="put all frames of an object into one image",
            )
        if layout.step_s is None:
            raise InputError(
                "the header does not say how much time passes between frames", where="pixdim[4]", fix="write it there"
            )
        values = read_nifti(path, channels=True).values
        levels = torch.unique(values)
        if len(levels) != 2:
            raise InputError(
                f"the frames of a sequence are masks of two values, these have {len(levels)}",
                fix="write every object as a sequence of its own: 1 inside, 0 outside",
            )
        frames = (values == levels[1]).permute(3, 0, 1, 2).contiguous()
        return MaskSequence(frames, layout.grid, layout.step_s, str(path))


def write_sequence(path: str | Path, sequence: MaskSequence) -> None:
    """Writes a sequence as uint8 NIfTI of four axes, atomically; `read_sequence` gives it back."""
    frames = sequence.frames.permute(1, 2, 3, 0).byte()
    write_nifti(path, frames, sequence.grid, unit="1", step_s=sequence.step_s)


def check_sequences(cohort: Cohort) -> None:
    """Reads every sequence of a cohort and raises `InputError` if one of them, or all together, cannot be learned from.

    Raises:
        InputError: as for `read_sequence`; fewer than two subjects to learn from; sequences that do not last equally
            long (by more than a hundredth).
    """
    if cohort.subjects("train") < 2:
        raise InputError(
            f"{cohort.subjects('train')} subject is in the split 'train': nothing can be learned about others",
            where=cohort.source,
            fix="list sequences of several subjects",
        )
    check_duration([read_sequence(member.path) for member in cohort.members])


def check_duration(sequences: Sequence[MaskSequence]) -> float:
    """How long all of the sequences last, in seconds.

    Raises:
        InputError: one lasts longer or shorter than the first, by more than a hundredth.
    """
    duration = sequences[0].duration_s
    for sequence in sequences:
        if abs(sequence.duration_s - duration) > 0.01 * duration:
            raise InputError(
                f"this sequence lasts {sequence.duration_s:.4g} s, '{Path(sequences[0].source).name}' "
                f"{duration:.4g} s: a moment would not mean the same in both",
                where=sequence.source,
                fix="cut all sequences to the same time span",
            )
    return duration
