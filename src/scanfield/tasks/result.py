"""What a method returns: a field with everything needed to render it later, from its file alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from scanfield.tasks.posterior import Posterior

KIND, SCHEMA = "field", 2  # 1: a single result; 2: an ensemble. A file has the smallest that can hold it


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
    if result.members:
        images = torch.stack([render_field(member, grid) for member in result.members])
        return images.double().mean(dim=0).to(images.dtype)
    device = next(result.field.parameters()).device
    return read_out(result.field, grid, domain=result.spec.domain, device=device)


def show_field(field: nn.Module, spec: Spec, run: Run, *, unit: str | None = None) -> None:
    """Lets whoever watches the run see a field while it is fitted (`Run.show`).

    Args:
        field: on the run's device, world points (n, 3) -> (n, c); of several channels the first is shown.
        unit: of its values, where it is not the spec's.
    """
    run.show(
        lambda grid: read_out(field, grid, domain=spec.domain, device=run.device),
        spec.grid,
        spec.unit if unit is None else unit,
    )


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
        members: of an ensemble, its results (see `ensemble`); empty for a single one.
    """

    method: str
    config: Any
    spec: Spec
    field: nn.Module
    tensors: dict[str, Tensor] = field(default_factory=dict)
    logs: list[FitLog] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    members: list[Reconstruction] = field(default_factory=list)

    @staticmethod
    def ensemble(members: Sequence[Reconstruction]) -> Reconstruction:
        """Results of one method on one scan as a set: equally likely, their mean is the set's image.

        Raises:
            ValueError: there is none, or their methods or grids differ.
        """
        if not members or any(m.method != members[0].method for m in members):
            raise ValueError("an ensemble consists of results of one method")
        if not all(m.spec.grid.same_as(members[0].spec.grid) for m in members):
            raise ValueError("the results of an ensemble lie on one grid")
        first = members[0]
        fields, logs = nn.ModuleList(m.field for m in members), [log for m in members for log in m.logs]
        return Reconstruction(first.method, first.config, first.spec, fields, logs=logs, members=list(members))

    @property
    def has_posterior(self) -> bool:
        """Whether this is a set of fields: an ensemble, or a method with a posterior of its own (`samples`)."""
        samples = self.samples()
        return next(samples, None) is not None and next(samples, None) is not None

    def samples(self) -> Iterator[Reconstruction]:
        """Equally likely results of one field each that this one stands for; itself where it has no posterior."""
        draw = vars(api.load(self.method)).get("samples")
        if self.members:
            for member in self.members:
                yield from member.samples()
        elif draw is None:
            yield self
        else:
            for drawn in draw(self):
                yield replace(self, field=drawn)

    def render(self, grid: Grid | None = None, *, spacing_mm: float | None = None) -> Tensor:
        """The method's image on `grid` (default: the scan's own), or on the scan's grid at another spacing.

        Of a posterior it is the mean image.
        """
        grid = self.spec.grid if grid is None else grid
        if spacing_mm is not None:
            grid = grid.resampled(spacing_mm)
        if self.has_posterior:
            return self.posterior(grid).mean
        image: Tensor = api.load(self.method).render(next(self.samples()), grid)
        return image

    def posterior(self, grid: Grid | None = None) -> Posterior:
        """The images of all samples on `grid` (default: the scan's own); they are held in memory together.

        Raises:
            InputError: the result has no posterior.
        """
        grid, module = self.spec.grid if grid is None else grid, api.load(self.method)
        return Posterior.of(module.render(sample, grid) for sample in self.samples())

    def predict(self, data: Any) -> Tensor:
        """What the result says the measurements of `data` should be; of a posterior the mean."""
        if self.has_posterior:
            return self.posterior_prediction(data).mean
        predicted: Tensor = api.load(self.method).predict(next(self.samples()), data)
        return predicted

    def posterior_prediction(self, data: Any) -> Posterior:
        """What every sample says the measurements of `data` should be, without their noise.

        Raises:
            InputError: the result has no posterior.
        """
        module = api.load(self.method)
        together = vars(module).get("predictions")
        if together is not None:
            return Posterior.of(together(self.samples(), data))
        return Posterior.of(module.predict(sample, data) for sample in self.samples())

    def save(self, path: Path) -> None:
        """Writes one safetensors file that `load` reads without the scan."""
        tensors, facts = self._state()
        facts |= {"kind": KIND, "schema": 2 if self.members else 1, "method": self.method}
        save_state(path, tensors, facts | {"provenance": self.provenance})

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts of this result; those of an ensemble's member k are called 'member/k/...'."""
        facts: dict[str, Any] = {"config": to_json(self.config), "spec": self.spec.to_json()}
        tensors: dict[str, Tensor] = {}
        if self.members:
            facts["members"] = []
            for k, member in enumerate(self.members):
                own, about = member._state()
                tensors |= {f"member/{k}/{name}": t for name, t in own.items()}
                facts["members"].append(about)
            return tensors, facts
        tensors = {f"field/{name}": t for name, t in self.field.state_dict().items()}
        tensors |= {f"tensor/{name}": t for name, t in self.tensors.items()}
        return tensors, facts | {"logs": [log.to_json() for log in self.logs]}

    @staticmethod
    def load(path: Path, device: torch.device | str = "cpu") -> Reconstruction:
        """Reads a file of `save`.

        Raises:
            InputError: truncated, altered or newer file, unknown method, or weights that do not fit the configuration.
        """
        tensors, facts = load_state(path, kind=KIND, schema=SCHEMA, migrations={1: lambda t, f: (t, f)})
        try:
            name, provenance, members = str(facts["method"]), facts["provenance"], list(facts.get("members", []))
        except (KeyError, TypeError) as error:
            raise InputError(f"the field file's header was altered: {error}", where=str(path)) from None
        if not members:
            result = _loaded(name, tensors, facts, path, device)
        else:
            parts = []
            for k, about in enumerate(members):
                own = {n.removeprefix(f"member/{k}/"): t for n, t in tensors.items() if n.startswith(f"member/{k}/")}
                parts.append(_loaded(name, own, about, path, device))
            result = Reconstruction.ensemble(parts)
        result.provenance = provenance
        return result


def _loaded(
    method: str, tensors: dict[str, Tensor], facts: dict[str, Any], path: Path, device: torch.device | str
) -> Reconstruction:
    """One result from its tensors and facts."""
    try:
        settings, spec = facts["config"], Spec.from_json(facts["spec"])
        logs = [FitLog(**log) for log in facts["logs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the field file's header was altered: {error}", where=str(path)) from None
    module = api.load(method)
    config = from_json(module.Config, settings, where=f"{path}: config")
    weights = {name.removeprefix("field/"): t for name, t in tensors.items() if name.startswith("field/")}
    try:
        numbers = max(64 * sum(t.numel() for t in weights.values()), 2**26)
        with Bounded(numbers=numbers, calls=10_000 + 1000 * len(weights)):
            model: nn.Module = module.build(config, spec)
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the weights do not fit the field's configuration: {error}", where=str(path)) from None
    kept = {name.removeprefix("tensor/"): t for name, t in tensors.items() if name.startswith("tensor/")}
    return Reconstruction(method, config, spec, model.to(device), kept, logs)
