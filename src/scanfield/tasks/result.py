"""What a method returns: a field with everything needed to render it later, from its file alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scanfield.errors import InputError
from scanfield.fields.field import read_out
from scanfield.fitting.log import FitLog
from scanfield.fitting.state import load_state, save_state
from scanfield.methods import api
from scanfield.methods.config import from_json, to_json
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid

KIND, SCHEMA = "field", 1


@dataclass(frozen=True, eq=False)
class Spec:
    """The facts of a scan that a field is built from.

    Args:
        domain: the box the field lives on.
        grid: the grid the scan asks for.
        unit: of the field's values.
        scale: expected largest value, in `unit`: what a head is scaled with.
        facts: anything else a method needs to rebuild itself, JSON-able.
    """

    domain: Domain
    grid: Grid
    unit: str
    scale: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "domain": self.domain.to_json(),
            "grid": self.grid.to_json(),
            "unit": self.unit,
            "scale": self.scale,
            "facts": self.facts,
        }

    @staticmethod
    def from_json(facts: dict[str, Any]) -> Spec:
        return Spec(
            domain=Domain.from_json(facts["domain"]),
            grid=Grid.from_json(facts["grid"]),
            unit=facts["unit"],
            scale=facts["scale"],
            facts=facts["facts"],
        )


@runtime_checkable
class Method(Protocol):
    """What a method's module defines (see `scanfield.methods.api`)."""

    Config: type[Any]

    def build(self, config: Any, spec: Spec) -> nn.Module: ...
    def fit(self, config: Any, data: Any, run: Run, *, held_out: Any = None, prior: Any = None) -> Reconstruction: ...
    def render(self, result: Reconstruction, grid: Grid) -> Tensor: ...
    def predict(self, result: Reconstruction, data: Any) -> Tensor: ...


def render_field(result: Reconstruction, grid: Grid) -> Tensor:
    """The field's own values on `grid`: the `render` of every method whose image is its field."""
    device = next(result.field.parameters()).device
    return read_out(result.field, grid, domain=result.spec.domain, device=device)


class Bounded(TorchFunctionMode):
    """Stops a `build` that makes far more numbers than the file holds: an altered header may announce any width.

    Raises:
        RuntimeError: inside it, more than `numbers` numbers or `calls` tensors are made.
    """

    def __init__(self, *, numbers: int, calls: int) -> None:
        self.numbers, self.calls = numbers, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers -= out.numel()
            self.calls -= 1
            if min(self.numbers, self.calls) < 0:
                raise RuntimeError("the configuration describes a much larger field than the file holds")
        return out


@dataclass(eq=False)
class Reconstruction:
    """A reconstructed image as a function of position.

    Args:
        method: name of the method.
        config: its configuration.
        spec: the scan's facts the field was built from.
        field: the fitted field: world coordinates -> values in `spec.unit`.
        tensors: anything else the method needs to render (measured rows, poses, ...).
        logs: one per stage.
        provenance: versions, inputs, command: filled by whoever ran the method.
    """

    method: str
    config: Any
    spec: Spec
    field: nn.Module
    tensors: dict[str, Tensor] = field(default_factory=dict)
    logs: list[FitLog] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def render(self, grid: Grid | None = None, *, spacing_mm: float | None = None) -> Tensor:
        """The method's image on `grid` (default: the scan's own), or on the scan's grid at another spacing."""
        grid = self.spec.grid if grid is None else grid
        if spacing_mm is not None:
            grid = grid.resampled(spacing_mm)
        image: Tensor = api.load(self.method).render(self, grid)
        return image

    def predict(self, data: Any) -> Tensor:
        """What the result says the measurements of `data` should be."""
        predicted: Tensor = api.load(self.method).predict(self, data)
        return predicted

    def save(self, path: Path) -> None:
        """Writes one safetensors file that `load` reads without the scan."""
        tensors = {f"field/{name}": t for name, t in self.field.state_dict().items()}
        tensors |= {f"tensor/{name}": t for name, t in self.tensors.items()}
        facts = {
            "kind": KIND,
            "schema": SCHEMA,
            "method": self.method,
            "config": to_json(self.config),
            "spec": self.spec.to_json(),
            "logs": [log.to_json() for log in self.logs],
            "provenance": self.provenance,
        }
        save_state(path, tensors, facts)

    @staticmethod
    def load(path: Path, device: torch.device | str = "cpu") -> Reconstruction:
        """Reads a file of `save`.

        Raises:
            InputError: truncated, altered or newer file, unknown method, or weights that do not fit the configuration.
        """
        tensors, facts = load_state(path, kind=KIND, schema=SCHEMA)
        try:
            name, settings, provenance = str(facts["method"]), facts["config"], facts["provenance"]
            spec = Spec.from_json(facts["spec"])
            logs = [FitLog(**log) for log in facts["logs"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the field file's header was altered: {error}", where=str(path)) from None
        module = api.load(name)
        config = from_json(module.Config, settings, where=f"{path}: config")
        weights = {name.removeprefix("field/"): t for name, t in tensors.items() if name.startswith("field/")}
        try:
            numbers = max(64 * sum(t.numel() for t in weights.values()), 2**26)
            with Bounded(numbers=numbers, calls=10_000 + 1000 * len(weights)):
                model: nn.Module = module.build(config, spec)
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"the weights do not fit the field's configuration: {error}", where=str(path)) from None
        return Reconstruction(
            method=name,
            config=config,
            spec=spec,
            field=model.to(device),
            tensors={name.removeprefix("tensor/"): t for name, t in tensors.items() if name.startswith("tensor/")},
            logs=logs,
            provenance=provenance,
        )
