"""Runs what `scanfield register` was asked to: two images, and what judges the map between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scanfield.cli.fit import fit, voxels
from scanfield.cli.inputs import read_image
from scanfield.cli.method_flags import How
from scanfield.cli.request import PairRequest
from scanfield.data.itk import without_bias_field
from scanfield.data.pair import Pair, windowed, with_mask
from scanfield.data.points import read_point_pairs
from scanfield.data.scan import Scan
from scanfield.methods import api
from scanfield.run import Run
from scanfield.tasks.outcome import Outcome
from scanfield.tasks.registration import register


def fit_pair(request: PairRequest, config: Any, folder: Path, how: How) -> int:
    """Runs a request in a folder and returns the exit code.

    Raises:
        InputError: an input is wrong; nothing is left of a folder made for it.
    """
    api.check_accepts(request.method, Pair.kind)
    windows = {"fixed": request.window, "moving": request.moving_window or request.window}
    pair = Pair(
        _image(request.fixed, request.fixed_mask, windows["fixed"], "fixed", request.correct_bias),
        _image(request.moving, request.moving_mask, windows["moving"], "moving", request.correct_bias),
    )
    landmarks = labels = None
    if request.fixed_points is not None and request.moving_points is not None:
        landmarks = read_point_pairs(request.fixed_points, request.moving_points)
    if request.fixed_labels is not None and request.moving_labels is not None:
        labels = read_image(request.fixed_labels), read_image(request.moving_labels)

    def prepare(run: Run) -> tuple[list[str], Callable[[], Outcome]]:
        described = [
            f"fixed     {_described(request.fixed, pair.fixed)}",
            f"moving    {_described(request.moving, pair.moving)}",
        ]
        facts = {}
        for which, window in windows.items():
            if window is not None:
                facts[f"{which} window"] = f"intensities cut off below {window[0]:g} and above {window[1]:g}"
            if request.correct_bias in (which, "both"):
                facts[f"{which} bias field"] = "divided out, found by N4"
        described += [f"{name:<18}{text}" for name, text in facts.items()]
        return described, lambda: register(
            pair,
            request.method,
            config,
            run,
            preset=request.preset,
            baselines=request.baselines,
            landmarks=landmarks,
            labels=labels,
            scan_facts=facts,
            request=asdict(request),
        )

    return fit(request, prepare, folder, how)


def _image(name: str, mask: str | None, window: list[float] | None, which: str, correct_bias: str) -> Scan:
    image = read_image(name)
    if mask is not None:
        image = with_mask(image, read_image(mask), which)
    if correct_bias in (which, "both"):
        image = without_bias_field(image)
    return image if window is None else windowed(image, *window)


def _described(name: str, scan: Scan) -> str:
    mask = "" if scan.mask is None else f", {int(scan.mask.sum())} of them in its mask"
    return f"{Path(name).name}: {voxels(scan.grid)}{mask}"
