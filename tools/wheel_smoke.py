"""Builds the source archive and the wheel, looks inside both, installs the wheel in an empty environment and uses it.

Run from the repository root: `python tools/wheel_smoke.py`. What an editable installation hides shows here: package
data that was not packed, an undeclared dependency, files that do not belong in a release.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "scanfield"
WORK = ROOT / "build" / "wheel-smoke"
JUNK = (
    "__pycache__",
    ".pyc",
    ".venv",
    ".git/",
    ".ci/",
    ".cache",
    ".hypothesis",
    "/demo/",
    "/site/",
    ".DS_Store",
    ".tmp",
)
WHEEL_LIMIT_MB = 16.0


def fail(message: str) -> None:
    raise SystemExit(f"wheel smoke test: {message}")


def build(folder: Path) -> tuple[Path, Path]:
    """(source archive, wheel); the wheel is built from the source archive, as an installer would."""
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"the build fails\n{done.stdout}{done.stderr}")
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def check_contents(sdist: Path, wheel: Path) -> None:
    """Every file of the package is in the wheel, nothing else is, and neither archive holds junk."""
    with tarfile.open(sdist) as archive:
        in_sdist = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    for name in (*in_sdist, *in_wheel):
        if any(mark in f"/{name}" for mark in JUNK):
            fail(f"{name} does not belong in a release")
    wanted = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in in_wheel if ".dist-info/" not in name}
    if packed != wanted:
        fail(f"missing from the wheel: {sorted(wanted - packed)}; unexpected: {sorted(packed - wanted)}")
    if not any(name.endswith("dist-info/licenses/LICENSE") for name in in_wheel):
        fail("the wheel lacks the licence text")
    size_mb = wheel.stat().st_size / 1e6
    if size_mb > WHEEL_LIMIT_MB:
        fail(f"the wheel is {size_mb:.1f} MB, the limit is {WHEEL_LIMIT_MB:.0f} MB")


def empty_environment(wheel: Path) -> Path:
    """Programs of an environment that holds the wheel and what it declares, nothing else.

    It stays in build/ and serves again while the declared dependencies are the same.
    """
    facts = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    folder = WORK / f"env-{hashlib.sha256(facts).hexdigest()[:12]}"
    programs, complete = folder / ("Scripts" if os.name == "nt" else "bin"), folder / "complete"
    reuse = complete.is_file()
    if not reuse:
        venv.create(folder, with_pip=True, clear=True)
    pip = [str(programs / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    how = ["--no-deps", "--force-reinstall"] if reuse else ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *how, str(wheel)], check=True)
    complete.touch()
    return programs


def use(programs: Path, folder: Path) -> None:
    """Walks from a shipped sample to a reconstruction, away from the repository and its environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    for line in (
        "list",
        "show siren",
        "doctor",
        "simulate ct sample:ct_chest_slice -o scan.npz --views 12 --detector-bins 48 --spacing-mm 8",
        "reconstruct scan.npz --method scope --preset tiny --baselines fast -o run --quiet",
        "render run -o finer.nii.gz --spacing-mm 4",
    ):
        done = subprocess.run(
            [str(programs / "scanfield"), *line.split()], cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            fail(f"`scanfield {line}` exits with {done.returncode}\n{done.stdout}{done.stderr}")
    for name in ("finer.nii.gz", "run/run.json", "run/field.safetensors", "run/report.html"):
        if not (folder / name).is_file():
            fail(f"there is no {name}")


def main() -> int:
    shutil.rmtree(WORK / "dist", ignore_errors=True)
    sdist, wheel = build(WORK / "dist")
    check_contents(sdist, wheel)
    programs = empty_environment(wheel)
    with tempfile.TemporaryDirectory() as folder:
        use(programs, Path(folder))
    print(f"wheel smoke test: {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB, installs alone and reconstructs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
