"""What a stage of a fit is at one moment, and the file it continues from bit for bit (CPU, same number of threads)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scanfield.errors import InputError
from scanfield.fitting.groups import Step
from scanfield.fitting.log import FitLog
from scanfield.fitting.state import adopt_parameters, load_state, save_state
from scanfield.run import Run

KIND, SCHEMA = "fit state", 1


@dataclass
class Stage:
    """A stage in progress: everything a checkpoint keeps, besides the run's generators.

    Args:
        step: the groups with their optimisers.
        log: what happened so far.
        average: exponential moving average of the parameters; empty if none is kept.
        best: the parameters of the best held-out check; empty if none is kept.
        sums: sum of every loss term since the last log line.
        summed: number of steps in `sums`.
    """

    step: Step
    log: FitLog
    average: list[Tensor] = field(default_factory=list)
    best: list[Tensor] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0

    def current(self) -> Sequence[Tensor]:
        """What would be returned now: the averaged parameters where an average is kept."""
        return self.average or self.step.parameters

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts `current` into the parameters for a moment."""
        kept = [p.detach().clone() for p in self.step.parameters] if self.average else []
        copy_into(self.step.parameters, self.average)
        try:
            yield
        finally:
            copy_into(self.step.parameters, kept)

    def save(self, path: Path, run: Run) -> None:
        """Writes the checkpoint."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, family in (("parameter", self.step.parameters), ("average", self.average), ("best", self.best)):
            tensors |= {f"{name}/{k}": tensor for k, tensor in enumerate(family)}
        tensors |= {f"generator/{name}": state for name, state in run.generator_states().items()}
        scalars: dict[str, Any] = {}
        for k, optimiser in enumerate(self.step.optimisers):
            for index, entries in optimiser.state_dict()["state"].items():
                for key, value in entries.items():
                    kept = tensors if isinstance(value, Tensor) else scalars
                    kept[f"optimiser/{k}/{index}/{key}"] = value
        facts = {"kind": KIND, "schema": SCHEMA, "log": self.log.to_json(), "scalars": scalars}
        save_state(path, tensors, facts | {"sums": self.sums, "summed": self.summed})

    def restore(self, path: Path, run: Run) -> None:
        """Continues from a checkpoint.

        Raises:
            InputError: the file is damaged, or belongs to a fit with other parameters.
        """
        tensors, facts = load_state(path, kind=KIND, schema=SCHEMA)
        try:
            self._adopt(tensors, facts, str(path), run)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the fit state does not belong to this fit, or was altered: {error}",
                where=str(path),
                fix="resume with the configuration the run was started with",
            ) from None

    def _adopt(self, tensors: dict[str, Tensor], facts: dict[str, Any], where: str, run: Run) -> None:
        parameters = self.step.parameters

        def family(name: str) -> list[Tensor]:
            return [tensors[f"{name}/{k}"] for k in range(len(parameters)) if f"{name}/{k}" in tensors]

        adopt_parameters(parameters, family("parameter"), where)
        averages = family("average")
        if len(averages) != len(self.average):
            raise ValueError("only one of the two keeps a moving average")
        copy_into(self.average, averages)
        self.best = family("best")
        for k, optimiser in enumerate(self.step.optimisers):
            state: dict[int, dict[str, Any]] = {}
            prefix = f"optimiser/{k}/"
            for name, value in [*tensors.items(), *facts["scalars"].items()]:
                if name.startswith(prefix):
                    index, key = name.removeprefix(prefix).split("/")
                    state.setdefault(int(index), {})[key] = value
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        run.restore_generators(
            {name.removeprefix("generator/"): t for name, t in tensors.items() if name.startswith("generator/")}
        )
        self.log, self.sums, self.summed = FitLog(**facts["log"]), facts["sums"], facts["summed"]


def copy_into(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies values into parameters in place; no values, no change."""
    if values:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
