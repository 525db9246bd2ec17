"""Proves that the light commands stay light: none imports torch, and `scanfield list` answers at once.

Run with the environment's Python: `python tools/import_gate.py`. Exit code 1 names every command that fails.
SCANFIELD_GATE_FACTOR (default 1) multiplies the time limit, for a machine that is busy with other work.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

LIST_LIMIT_S = 0.3
HEAVY = ("torch", "scipy", "matplotlib", "skimage")
COMMANDS = (
    ("import scanfield", "import scanfield"),
    *(
        (f"scanfield {line}".strip(), f"from scanfield.cli.main import main; main({line.split()!r})")
        for line in ("--help", "--version", "list", "list --json", "show scope", "cite scope")
    ),
)

# The statement may end in SystemExit, as --help does; what counts is which modules it left behind.
PROBE = """
import sys
try:
    {statement}
except SystemExit as stop:
    if stop.code not in (0, None):
        raise
print("heavy:" + ",".join(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


def heavy_imports(statement: str) -> list[str]:
    """Heavy modules that a fresh interpreter has loaded after `statement`."""
    code = PROBE.format(statement=statement, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().rpartition("\n")[2]
    if done.returncode != 0 or not last.startswith("heavy:"):
        raise SystemExit(f"import gate: `{statement}` failed\n{done.stderr}")
    return [name for name in last.removeprefix("heavy:").split(",") if name]


def list_seconds(repeats: int = 5) -> float:
    """Median wall time of `scanfield list` in a fresh process, after one warm-up."""
    program = os.path.join(os.path.dirname(sys.executable), "scanfield")
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([program, "list"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> int:
    failures = []
    for name, statement in COMMANDS:
        loaded = heavy_imports(statement)
        if loaded:
            failures.append(f"`{name}` imports {', '.join(loaded)}")
    limit = LIST_LIMIT_S * float(os.environ.get("SCANFIELD_GATE_FACTOR", "1"))
    seconds = list_seconds()
    if seconds > limit:
        failures.append(f"`scanfield list` takes {seconds:.2f} s, the limit is {limit:.2f} s")
    for failure in failures:
        print(f"import gate: {failure}", file=sys.stderr)
    if not failures:
        print(f"import gate: {len(COMMANDS)} commands without {'/'.join(HEAVY)}; `scanfield list` {seconds:.3f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
