"""What a run was asked to do: kept in run.json, so that it can be continued. No torch in here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from scanfield.errors import InputError

R = TypeVar("R", bound="Request")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that determines a run besides its configuration; kept in run.json as `request`.

    Paths are absolute, so that a run can be continued from anywhere; `inputs` are all files that are read.
    """

    command: str
    inputs: list[str]
    method: str
    preset: str
    seed: int
    device: str
    baselines: Literal["none", "fast", "all"]
    backend: str = "auto"

    program: ClassVar[str]  # the command that makes and continues such runs


@dataclass(frozen=True, kw_only=True)
class ScanRequest(Request):
    """Of `scanfield reconstruct`."""

    like: str | None
    spacing_mm: float | None
    reference: str | None
    reference_unit: Literal["auto", "HU", "1/mm"]
    holdout_views: int | None
    holdout_fraction: float | None
    prior: str | None = None
    prior_unit: Literal["auto", "HU", "1/mm"] = "auto"
    ensemble: int | None = None
    metal_mask: str | None = None
    spectrum: str | None = None

    program = "reconstruct"


@dataclass(frozen=True, kw_only=True)
class PairRequest(Request):
    """Of `scanfield register`."""

    fixed: str
    moving: str
    fixed_mask: str | None
    moving_mask: str | None
    fixed_points: str | None
    moving_points: str | None
    fixed_labels: str | None
    moving_labels: str | None
    window: list[float] | None
    moving_window: list[float] | None = None
    correct_bias: str = "none"

    program = "register"


@dataclass(frozen=True, kw_only=True)
class StackRequest(Request):
    """Of `scanfield reconstruct` with stacks of slices; `options` are those of `cli.stack_inputs`."""

    stacks: list[str]
    options: dict[str, Any]
    registration: Literal["none", "stack"]
    holdout_slices: int | None
    holdout_stack: int | None
    like: str | None
    spacing_mm: float | None
    full_field_of_view: bool

    program = "reconstruct"


@dataclass(frozen=True, kw_only=True)
class KSpaceRequest(Request):
    """Of `scanfield reconstruct` with raw MR data; `options` are those of `cli.kspace_inputs`."""

    scans: list[str]
    options: dict[str, Any]
    holdout_views: int | None
    reference: str | None
    like: str | None
    spacing_mm: float | None

    program = "reconstruct"


@dataclass(frozen=True, kw_only=True)
class DoseRequest(Request):
    """Of `scanfield dose`."""

    dose: str
    unit: Literal["Gy", "cGy"]
    relative_to_gy: float | None
    add: str | None
    through: str | None
    structures: str | None
    chosen: list[str]
    prescribed_gy: float | None
    architecture: str | None
    like: str | None
    spacing_mm: float | None

    program = "dose"


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Request):
    """Of `scanfield train`."""

    cohort: str
    licence: str
    labels: str | None = None

    program = "train"


def read_request(cls: type[R], facts: dict[str, Any], where: str) -> R:
    """The request that a run was started with.

    Raises:
        InputError: another command started it, or its record does not say how it was started.
    """
    tasks = {"registration": "register", "dose": "dose"}
    started = facts.get("program") or tasks.get(str(facts.get("task")), "reconstruct")
    if started != cls.program:
        raise InputError(
            f"this run was started by `scanfield {started}`", where=where, fix=f"scanfield {started} --resume RUN"
        )
    try:
        return cls(**facts["request"])
    except (KeyError, TypeError):
        raise InputError("this run does not say how it was started", where=where, fix="start it again") from None


def read_run(folder: Path) -> dict[str, Any]:
    """The facts in a RUN folder's run.json.

    Raises:
        InputError: there is no run, it cannot be read, or a newer version wrote it.
    """
    path = folder / "run.json"
    fix = "give the folder that was written as -o RUN"
    if not path.is_file():
        raise InputError("this is not a RUN folder: it has no run.json", where=str(folder), fix=fix)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"run.json cannot be read: {error}", where=str(path), fix="start the run again") from None
    from scanfield.tasks.folder import SCHEMA

    schema = facts.get("schema") if isinstance(facts, dict) else None
    if not isinstance(schema, int):
        raise InputError("run.json does not describe a run", where=str(path), fix=fix)
    if schema > SCHEMA:
        raise InputError(
            f"this run was written by a newer version (schema {schema}; this version reads up to {SCHEMA})",
            where=str(path),
            fix="pip install --upgrade scanfield",
        )
    return dict(facts)


def check_unchanged(request: Request, started: set[str], where: str) -> None:
    """Raises `InputError` if an input is gone or is not the file the run was started with."""
    from scanfield.data.files import checksum

    for name in request.inputs:
        if not Path(name).exists():
            raise InputError("the scan of this run is no longer there", where=name, fix="put it back, or start again")
        if checksum(name) not in started:
            raise InputError(
                "the scan has changed since the run was started",
                where=name,
                fix=f"start again; {where} has the command",
            )
