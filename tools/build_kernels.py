"""Builds the C++ kernels: as the build backend's hook when the package is installed, or by hand after an edit.

    python tools/build_kernels.py

One shared library per instruction set; which one is loaded is decided where it runs. Without a C++ compiler the
package still builds, without the kernels, and `scanfield doctor` says so.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def _hook_interface() -> Any:
    """Hatchling's, or a plain object where this file is run by hand."""
    try:
        return importlib.import_module("hatchling.builders.hooks.plugin.interface").BuildHookInterface
    except ImportError:
        return object


BuildHookInterface: Any = _hook_interface()
KERNELS = Path(__file__).resolve().parents[1] / "src" / "scanfield" / "kernels"
SOURCES = KERNELS / "native"
LIBRARIES = KERNELS / "lib"
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
    "base": [],
}
FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra", "-Wno-psabi", "-pthread",
]  # fmt: skip


def compiler() -> str | None:
    """CXX, or the first compiler of the usual names."""
    wanted = os.environ.get("CXX")
    return shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


def build() -> list[Path]:
    """Builds every library of this processor family, and returns them.

    Raises:
        FileNotFoundError: there is no compiler.
        subprocess.CalledProcessError: a source does not compile; its output goes to stderr.
    """
    command = compiler()
    if command is None:
        raise FileNotFoundError("no C++ compiler: none of g++, clang++, c++ is there, and CXX names none")
    LIBRARIES.mkdir(exist_ok=True)
    sets = X86 if platform.machine().lower() in ("x86_64", "amd64") else {"base": []}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(name, source) for name in sets for source in sorted(SOURCES.glob("*.cpp"), key=_size, reverse=True)]
        list(
            pool.map(
                lambda job: _compile(command, sets[job[0]], job[1], Path(folder) / f"{job[0]}-{job[1].stem}.o"), jobs
            )
        )
        return [_link(command, name, sorted(Path(folder).glob(f"{name}-*.o")), Path(folder)) for name in sets]


def _size(source: Path) -> int:
    return source.stat().st_size


def _compile(command: str, flags: list[str], source: Path, target: Path) -> None:
    subprocess.run([command, *FLAGS, *flags, "-c", str(source), "-o", str(target)], check=True)


def _link(command: str, name: str, objects: list[Path], folder: Path) -> Path:
    """Replaces the library in one step: a running process keeps the old one."""
    fresh, target = folder / f"{name}{SUFFIX}", LIBRARIES / f"libscanfield-{name}{SUFFIX}"
    static = ["-static-libstdc++", "-static-libgcc"] if sys.platform.startswith("linux") else []
    subprocess.run([command, "-shared", "-pthread", *static, *map(str, objects), "-o", str(fresh)], check=True)
    shutil.copy(fresh, target.with_suffix(".new"))
    os.replace(target.with_suffix(".new"), target)
    return target


class KernelHook(BuildHookInterface):
    """Puts the libraries into the wheel and marks it as one of this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it packs the wheel."""
        try:
            build()
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"scanfield is installed without its C++ kernels: {error}")
            shutil.rmtree(LIBRARIES, ignore_errors=True)
            return
        build_data["pure_python"] = False
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"


if __name__ == "__main__":
    for path in build():
        print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
