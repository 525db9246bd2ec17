"""Benchmark results as text: one result, or two beside each other."""

from __future__ import annotations

from typing import Any


def as_text(result: dict[str, Any]) -> str:
    """The table, the checks and the notes of one result."""
    commit = result["commit"] or "unknown"
    lines = [f"{result['method']}  ({result['device']}, {_duration(result)}, commit {commit})", ""]
    lines += _columns(result["table"])
    lines.append("")
    for check in result["checks"]:
        mark = "ok  " if check["passed"] else "FAIL"
        unit = f" {check['unit']}" if check["unit"] else ""
        lines.append(f"{mark}  {check['name']}: {check['value']:.4g} {check['sense']} {check['threshold']:.4g}{unit}")
    return "\n".join([*lines, *(f"note  {note}" for note in result["notes"])])


def before_after(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Every check of two results of one benchmark, with the change, and the seconds; a warning where the protocols are
    not known to be the same."""
    old = {check["name"]: check["value"] for check in before["checks"]}
    rows: list[dict[str, Any]] = []
    for check in after["checks"]:
        value = old.get(check["name"])
        rows.append(
            {
                "check": check["name"],
                "before": value,
                "after": check["value"],
                "change": None if value is None else check["value"] - value,
                "threshold": check["threshold"],
                "passed": check["passed"],
            }
        )
    first, second = before["seconds"], after["seconds"]
    change = None if first is None or second is None else second - first
    rows.append({"check": "seconds", "before": first, "after": second, "change": change})
    names = [f"{r['commit'] or 'unknown'} on {r['device']}, {r['date']}" for r in (before, after)]
    lines = [f"before: {names[0]}", f"after:  {names[1]}", *_protocols(before, after)]
    return "\n".join([*lines, "", *_columns(rows)])


def _protocols(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A warning where two results need not be of the same protocol."""
    digests = [result.get("protocol_sha256") for result in (before, after)]
    if None in digests:
        return ["Whether the protocol is the same is not known: not both results say which they are of."]
    if digests[0] != digests[1]:
        return ["The protocols differ: a change may come from what was measured, not only from what was improved."]
    return []


def _duration(result: dict[str, Any]) -> str:
    """Seconds of a result, or how much of it was taken from an earlier run."""
    taken = result.get("taken")
    if not taken or not taken["results"]:
        return f"{result['seconds']} s"
    return f"{taken['results']} of {taken['of']} results kept from before, which took {taken['seconds']} s"


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([_cell(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(keys))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
