"""Ensembles: the same fit from several seeds (Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from scanfield.errors import InputError
from scanfield.run import Run

Fitted = TypeVar("Fitted")


def fit_members(fit: Callable[[Run], Fitted], count: int, run: Run) -> list[Fitted]:
    """`count` independent fits, one after the other; member k is what `fit` makes of the seed `run.seed + k`.

    A resumed run takes finished members from their checkpoints and continues with the first that is not. When the run
    is stopped, the members finished by then are returned, or the first one as it is.

    Args:
        fit: fits once in the run it is given; draws all random numbers from it.

    Raises:
        InputError: fewer than two members, or the run is a member's own.
    """
    if run.part:
        raise InputError(
            "a member of an ensemble cannot be an ensemble: their seeds would meet",
            fix="leave out --ensemble, or choose another posterior of the method",
        )
    if count < 2:
        raise InputError(f"an ensemble has at least two members, got {count}")
    members: list[Fitted] = []
    for index in range(count):
        fitted = fit(run.member(index))
        if run.stop.is_set() and members:
            break  # this member is unfinished: its checkpoint is kept, its field is not worth a vote
        members.append(fitted)
        if run.stop.is_set():
            break
    if len(members) < count:
        run.warn(f"The run was stopped: {len(members)} of {count} members of the ensemble are in the result.")
    return members
