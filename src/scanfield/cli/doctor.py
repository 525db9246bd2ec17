"""`scanfield doctor`: whether this installation works, and what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from scanfield.cli.parser import Parser, add_json
from scanfield.cli.text import hanging

REQUIRED = (
    "torch",
    "numpy",
    "scipy",
    "nibabel",
    "scikit-image",
    "safetensors",
    "rich",
    "jaxtyping",
    "matplotlib",
    "jinja2",
)
_MODULES = {"scikit-image": "skimage"}
EXTRAS = {
    "dicom": ("pydicom", "DICOM series, RTDOSE and RTSTRUCT"),
    "itk": ("SimpleITK", "bias fields (N4), a rival of registration"),
    "mri": ("finufft", "raw MR data"),
    "spectra": ("xraydb", "X-ray spectra and metal"),
    "zarr": ("zarr", "volumes larger than memory"),
    "view": ("starlette", "runs in the browser"),
    "pdf": ("weasyprint", "reports as PDF"),
    "codec": ("imagecodecs", "standard codecs as rivals of compression"),
}
_MATMUL = 1024


@dataclass(frozen=True)
class Finding:
    """One line of the report: 'ok', 'note' (works without it) or 'broken' (does not)."""

    name: str
    state: Literal["ok", "note", "broken"]
    text: str
    fix: str = ""


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield doctor` and returns its exit code."""
    parser = Parser("scanfield doctor", "Checks this installation. Exit code 1 if something essential is broken.")
    add_json(parser)
    args = parser.parse(argv[1:])
    findings = diagnose()
    broken = any(finding.state == "broken" for finding in findings)
    if args.json:
        print(json.dumps({"ok": not broken, "findings": [asdict(f) for f in findings]}, indent=2, ensure_ascii=False))
        return int(broken)
    size = max(len(finding.name) for finding in findings) + 2
    marks = {"ok": "✓", "note": "·", "broken": "✗"}
    for finding in findings:
        print(hanging(f"{marks[finding.state]} {finding.name:<{size}}", finding.text))
        if finding.fix:
            print(" " * (size + 2) + finding.fix)
    print("\nSomething essential is broken (✗)." if broken else "\nEverything essential works.")
    return int(broken)


def diagnose() -> list[Finding]:
    """All findings; a check that fails in an unforeseen way is itself a finding."""
    findings = [_python(), *(_package(name) for name in REQUIRED)]
    findings += [_extra(extra, module, purpose) for extra, (module, purpose) in EXTRAS.items()]
    for name, check in (("methods", _methods), ("compute", _compute)):
        findings.append(_guarded(name, check))
    findings += _kernels()
    for name, check in (("samples", _samples), ("writing", _writing)):
        findings.append(_guarded(name, check))
    return findings


def _guarded(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", check())
    except Exception as error:
        return Finding(name, "broken", f"{type(error).__name__}: {error}", fix=_reinstall())


def _reinstall() -> str:
    return "pip install --force-reinstall scanfield"


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _package(name: str) -> Finding:
    try:
        importlib.import_module(_MODULES.get(name, name))
        return Finding(name, "ok", version(name))
    except (ImportError, OSError, PackageNotFoundError) as error:
        return Finding(name, "broken", str(error), fix=f"pip install {name}")


def _extra(extra: str, module: str, purpose: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(extra, "note", f"{purpose}: not installed", fix=f"pip install 'scanfield[{extra}]'")
    return Finding(extra, "ok", f"{purpose}: {module} {version(module)}")


def _methods() -> str:
    from scanfield.methods.api import discover, load

    names = list(discover())
    for name in names:
        load(name)
    return f"{len(names)} installed: {', '.join(names)}"


def _compute() -> str:
    import torch

    a = torch.rand(_MATMUL, _MATMUL)
    a @ a
    start, repeats = time.perf_counter(), 8
    for _ in range(repeats):
        a @ a
    rate = repeats * 2 * _MATMUL**3 / (time.perf_counter() - start) / 1e9
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} processors, {rate:.0f} GFLOP/s (matrix product)"
    if not torch.cuda.is_available():
        return f"{threads}; no GPU"
    return f"{threads}; GPU: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _kernels() -> list[Finding]:
    """Which backend computes networks and grids on each device, and why."""
    import torch

    from scanfield.kernels.backend import backend_for

    findings = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        backend = backend_for(torch.device(device))
        if backend.name == "reference":
            text = f"plain torch, several times slower: {backend.why}"
            fix = (
                "install a C++ compiler, then: pip install --force-reinstall --no-deps --no-binary scanfield scanfield"
            )
            findings.append(
                Finding(f"kernels, {device}", "note", text, fix if device == "cpu" else "pip install triton")
            )
        else:
            findings.append(Finding(f"kernels, {device}", "ok", f"{backend.name}: {backend.why}"))
    return findings


def _samples() -> str:
    from scanfield.data.samples import sample, sample_names

    names = sample_names()
    for name in names:
        sample(name)
    if not names:
        raise FileNotFoundError("no scan ships with this installation")
    return ", ".join(names)


def _writing() -> str:
    with tempfile.NamedTemporaryFile(dir=".", prefix=".scanfield-"):
        return "files can be written to the current folder"
