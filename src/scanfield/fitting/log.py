"""What happened in a fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Stopped = Literal["running", "steps", "held-out", "interrupted"]


@dataclass
class FitLog:
    """What happened in one stage: `history` holds {step, seconds, loss: {term: mean}, held_out} per log line."""

    stage: str
    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: Stopped = "running"
    best_step: int | None = None
    best_held_out: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
