"""The documentation's snippets run.

A fenced block is run when the line before it is `<!-- run -->`. A comment such as

    <!-- run, "--preset fast" -> "--preset tiny" -->

replaces text first, so that a page can show the real setting and the test use a small one. The marked blocks of a page
run in order in one empty folder. `python` blocks are programs of their own; in `console` blocks what follows `$` runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^<!-- run(?P<swaps>,.*?)? -->\n```(?P<kind>\w+).*?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
SWAP = re.compile(r', "(.*?)" -> "(.*?)"')
COMMAND_LINE = 'scanfield() { "$PYTHON" -m scanfield "$@"; }\n'


def runnable(page: Path) -> list[tuple[str, str]]:
    """(kind, text) of the marked blocks of a page, replacements applied."""
    blocks = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        body = match["body"]
        for old, new in SWAP.findall(match["swaps"] or ""):
            assert old in body, f"{page.name}: nothing to replace, '{old}' is not in the block"
            body = body.replace(old, new)
        blocks.append((match["kind"], body))
    return blocks


def commands(body: str) -> str:
    """The shell commands of a console block: what follows `$`, with continued lines, without output and comments."""
    lines, going_on = [], False
    for line in body.splitlines():
        if line.startswith("$ ") or going_on:
            lines.append(line.removeprefix("$ "))
            going_on = line.endswith("\\")
    return "\n".join(lines) + "\n"


def test_every_mark_is_followed_by_a_block_of_a_known_kind() -> None:
    for page in PAGES:
        marks = len(re.findall(r"^<!-- run", page.read_text(encoding="utf-8"), re.MULTILINE))
        blocks = runnable(page)
        assert len(blocks) == marks, f"{page}: a mark without a block"
        assert {kind for kind, _ in blocks} <= {"python", "console"}, page


def test_console_blocks_keep_commands_and_drop_output() -> None:
    assert commands("$ scanfield list \\\n    --json\nname\n$ true   # fine\n") == (
        "scanfield list \\\n    --json\ntrue   # fine\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_snippets_run(page: Path, tmp_path: Path) -> None:
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    for kind, body in runnable(page):
        script = body if kind == "python" else "set -euo pipefail\n" + COMMAND_LINE + commands(body)
        program = [sys.executable, "-"] if kind == "python" else ["bash", "-s"]
        done = subprocess.run(program, input=script, text=True, capture_output=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, f"{page.name}:\n{body}\n{done.stdout}\n{done.stderr}"
