"""Builds the source archive and the wheel, looks inside both, installs the wheel in an empty environment and uses it.

Run from the repository root: `python tools/wheel_smoke.py`. What an editable installation hides shows here: package
data that was not packed, an undeclared dependency, files that do not belong in a release.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "scanfield"
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
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, stdout=subprocess.DEVNULL
    )
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


def use(wheel: Path, folder: Path) -> None:
    """Installs the wheel alone and walks from a shipped sample to a reconstruction."""
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    # Away from the repository and from its environment, so that only the installed package can be found.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    for line in (
        "list",
        "show siren",
        "doctor",
        "simulate ct sample:ct_chest_slice -o scan.npz --geometry parallel --views 12 --detector-bins 48 --seed 0",
        "reconstruct scan.npz --method scope --preset tiny --baselines fast -o run --quiet",
    ):
        done = subprocess.run(
            [str(programs / "scanfield"), *line.split()], cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            fail(f"`scanfield {line}` exits with {done.returncode}\n{done.stdout}{done.stderr}")
    for name in ("run.json", "field.safetensors", "report.html"):
        if not (folder / "run" / name).is_file():
            fail(f"the reconstruction left no {name}")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist, wheel = build(folder)
        check_contents(sdist, wheel)
        use(wheel, folder)
        print(f"wheel smoke test: {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB, installs alone and reconstructs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
