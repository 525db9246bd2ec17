"""Runs protocols and keeps their results, one JSON line each."""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scanfield.errors import InputError, nearest

PROTOCOLS = Path(__file__).parent / "protocols"


def protocol_names() -> list[str]:
    """All protocols, by file name; imports none of them."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.py") if path.stem != "__init__")


def source_sha256(path: Path) -> str:
    """SHA-256 of a file; a Python source's line endings do not matter."""
    content = path.read_bytes()
    return hashlib.sha256(content.replace(b"\r\n", b"\n") if path.suffix == ".py" else content).hexdigest()


def protocol_sha256(name: str) -> str:
    """SHA-256 of a protocol's source: what the line that it makes carries."""
    return source_sha256(PROTOCOLS / f"{name}.py")


def run_protocol(
    name: str,
    *,
    device: str = "auto",
    seed: int = 0,
    observers: tuple[Callable[[dict[str, Any]], None], ...] = (),
    keep: Path | None = None,
) -> dict[str, Any]:
    """Runs one protocol and returns its JSON object: method, checks, table, notes, seconds, device, machine, commit,
    digest of the protocol.

    Args:
        observers: told {"case": title} whenever another case begins, and how many of independent jobs are done
            (`bench.parallel.each`).
        keep: folder for the results of independent jobs. Those in it are taken: 'taken' says how many of all, and the
            seconds they took, one after the other, when they were made; 'seconds' of the whole is None then.

    Raises:
        InputError: unknown protocol, its data are missing, or `keep` is no folder.
    """
    if name not in protocol_names():
        raise InputError(f"there is no benchmark '{name}'{nearest(name, protocol_names())}", fix="scanfield bench list")
    import torch

    from scanfield.bench.kept import BenchRun, Kept
    from scanfield.run import choose_device

    run = BenchRun(device=choose_device(device), seed=seed, observers=observers)
    machine = {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scanfield": version("scanfield"),
    }
    place = torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu"
    run.kept = kept = Kept(keep, machine | {"device": place}) if keep else None
    protocol = protocol_sha256(name)
    module = importlib.import_module(f"{__package__}.protocols.{name}")
    start = time.perf_counter()
    result = module.run(run)
    seconds = None if kept and kept.taken_s else round(time.perf_counter() - start, 1)
    taken = {"results": len(kept.taken_s), "of": kept.jobs, "seconds": round(sum(kept.taken_s), 1)} if kept else None
    return {
        "method": name,
        "protocol_sha256": protocol,
        "checks": [check.to_json() for check in result.checks],
        "table": result.table,
        "notes": result.notes,
        "seconds": seconds,
        **({"taken": taken} if taken else {}),
        "device": place,
        "seed": seed,
        "machine": machine,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def passed(result: dict[str, Any]) -> bool:
    """Whether every check of a result holds."""
    return all(check["passed"] for check in result["checks"])


def append(result: dict[str, Any], folder: Path) -> Path:
    """Adds a result to `folder/<method>.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['method']}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    return path


def history(name: str, folder: Path) -> list[dict[str, Any]]:
    """All kept results of a protocol, oldest first."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise InputError(f"there are no results of '{name}'", where=str(path), fix=f"scanfield bench run {name}")
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise InputError(f"a line is not JSON: {error}", where=str(path)) from None


def changed_since(name: str, result: dict[str, Any]) -> bool:
    """Whether a result says that it was measured with another protocol than the one that is here now; those of before
    `protocol_sha256` say nothing."""
    stated = result.get("protocol_sha256")
    return stated is not None and stated != protocol_sha256(name)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The source's commit with '+' for uncommitted changes; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short", "HEAD")
        changed = _git(here, "status", "--porcelain", "-uno", "--", str(here.parent))
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
