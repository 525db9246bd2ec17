"""Neural-field methods for medical imaging: one scan in, one set of commands, an honest table out.

    import scanfield
    scan = scanfield.load("scan.npz")                        # or a NIfTI file, or a DICOM folder
    outcome = scanfield.reconstruct(scan, method="scope", preset="fast", baselines="fast")
    print(outcome.table.to_text())
    image = outcome.result.render(spacing_mm=0.5)            # (n0, n1, n2), 1/mm

Names are imported when they are first used: `import scanfield` alone loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanfield.data.files import load
    from scanfield.data.measurement import Measurement, Noise
    from scanfield.data.nifti import write_nifti
    from scanfield.data.projections import write_projections
    from scanfield.data.samples import sample, sample_names
    from scanfield.data.scan import Scan
    from scanfield.errors import InputError, ScanfieldError
    from scanfield.methods.api import discover
    from scanfield.operators.simulate import CtScanOptions, simulate_ct
    from scanfield.run import Run
    from scanfield.shortcuts import generate, open_result, reconstruct, register, segment
    from scanfield.space.domain import Domain
    from scanfield.space.grid import Grid
    from scanfield.space.projection import Detector, ProjectionGeometry
    from scanfield.tasks.result import Reconstruction

_HOMES = {
    "scanfield.data.files": ("load",),
    "scanfield.data.measurement": ("Measurement", "Noise"),
    "scanfield.data.nifti": ("write_nifti",),
    "scanfield.data.projections": ("write_projections",),
    "scanfield.data.samples": ("sample", "sample_names"),
    "scanfield.data.scan": ("Scan",),
    "scanfield.errors": ("InputError", "ScanfieldError"),
    "scanfield.methods.api": ("discover",),
    "scanfield.operators.simulate": ("CtScanOptions", "simulate_ct"),
    "scanfield.run": ("Run",),
    "scanfield.shortcuts": ("generate", "open_result", "reconstruct", "register", "segment"),
    "scanfield.space.domain": ("Domain",),
    "scanfield.space.grid": ("Grid",),
    "scanfield.space.projection": ("Detector", "ProjectionGeometry"),
    "scanfield.tasks.result": ("Reconstruction",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CtScanOptions",
    "Detector",
    "Domain",
    "Grid",
    "InputError",
    "Measurement",
    "Noise",
    "ProjectionGeometry",
    "Reconstruction",
    "Run",
    "Scan",
    "ScanfieldError",
    "__version__",
    "discover",
    "generate",
    "load",
    "open_result",
    "reconstruct",
    "register",
    "sample",
    "sample_names",
    "segment",
    "simulate_ct",
    "write_nifti",
    "write_projections",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("scanfield")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'scanfield' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
