"""The best architecture at a rate, searched once per site and kept in a file.

The file holds, for every rate that was asked for, the settings that won and what was tried:

    {"schema": 1, "method": "dose_inr", "rates": {"1": {"settings": {"hidden_layers": 3}, "tried": [...]}}}
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from scanfield.data.dose import Dose
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.run import Run, on_the_run_s_backend

SCHEMA = 1


def architecture(path: str | Path, method: str, config: Any, data: Dose, run: Run) -> Any:
    """The configuration with the settings that the file has for its rate; searched on this dose where it has none.

    Raises:
        InputError: the file is damaged, or belongs to another method.
    """
    path = Path(path)
    facts: dict[str, Any] = {"schema": SCHEMA, "method": method, "rates": {}}
    if path.exists():
        facts = _read(path, method)
    key = f"{config.bits_per_voxel:g}"
    if key not in facts["rates"]:
        tried = search(method, config, data, run)
        if run.stop.is_set():
            return config
        best = min(tried, key=lambda entry: float(entry["rmse_gy"]))
        facts["rates"][key] = {"settings": best["settings"], "tried": tried}
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    settings = facts["rates"][key]["settings"]
    run.note(f"Architecture at {key} bits per voxel, from {path.name}: {_text(settings)}.")
    return replace(config, **settings)


@on_the_run_s_backend
def search(method: str, config: Any, data: Dose, run: Run) -> list[dict[str, Any]]:
    """Every candidate of the method at the rate of `config`, fitted shortly: settings, width and error (RMS, Gy)."""
    module = api.load(method)
    tried = []
    for settings in module.candidates(config):
        if run.stop.is_set():
            break
        run.tell({"case": _text(settings)})
        trial = replace(config, **settings, steps=max(1, config.steps // 4))
        result = module.fit(trial, data, Run(device=run.device, seed=run.seed, backend=run.backend, stop=run.stop))
        error = result.logs[-1].best_held_out
        tried.append({"settings": settings, "width": result.spec.facts["width"], "rmse_gy": error})
    return tried


def _read(path: Path, method: str) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        rates = facts["rates"]
        if facts["schema"] != SCHEMA or any(not isinstance(entry["settings"], dict) for entry in rates.values()):
            raise ValueError("unknown schema")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the file holds no architectures: {error}", where=str(path), fix="delete it") from None
    if facts.get("method") != method:
        raise InputError(f"the architectures are of method '{facts.get('method')}', not '{method}'", where=str(path))
    return dict(facts)


def _text(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
