"""From two images to a judged map between them: fit, rivals on the same pair, numbers, files, report.

A run's folder holds, besides what every run leaves (phi maps points of the fixed image to the moving one, psi back):

    field.safetensors                the map itself; `scanfield warp` needs nothing else
    displacement.nii.gz              phi(x) - x in mm on the fixed grid, components along RAS+
    displacement_itk.nii.gz          the same for ITK, ANTs and SimpleITK, components along LPS+
    inverse_displacement.nii.gz      psi(y) - y on the moving grid, RAS+; inverse_displacement_itk.nii.gz, LPS+
    determinant.nii.gz               det d phi / d x on the fixed grid
    warped.nii.gz                    the moving image on the fixed grid; identity.nii.gz without registration
    landmarks.csv                    the fixed landmarks at their mapped places, with both errors
    warped_labels.nii.gz, dice.csv   the moving labels on the fixed ones' grid, and every label's overlap
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from scanfield.baselines.registration import BASELINES
from scanfield.data.displacement import write_displacement, write_itk_displacement
from scanfield.data.nifti import write_nifti
from scanfield.data.pair import Pair
from scanfield.data.points import Points, write_points
from scanfield.data.scan import Scan
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.methods import api
from scanfield.methods.config import to_json
from scanfield.run import Run, on_the_run_s_backend
from scanfield.space.grid import Grid
from scanfield.tasks.alignment import Judge
from scanfield.tasks.folder import Picture, begin, facts_of
from scanfield.tasks.image_fit import hold_out
from scanfield.tasks.outcome import Outcome, finish
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.table import Table
from scanfield.tasks.warp import (
    TOLERANCE_MM,
    displacement_on,
    inverse_on,
    map_points,
    mapping,
    own_inverse,
    warped_image,
)

HELD_OUT_FRACTION = 0.05
WORTH_A_WARNING = 0.1  # percent of folded points
BEFORE = "no registration"


@on_the_run_s_backend
def register(
    data: Pair,
    method: str,
    config: Any,
    run: Run,
    *,
    preset: str = "fast",
    baselines: Literal["none", "fast", "all"] = "all",
    landmarks: tuple[Points, Points] | None = None,
    labels: tuple[Scan, Scan] | None = None,
    scan_facts: dict[str, Any] | None = None,
    request: dict[str, Any] | None = None,
) -> Outcome:
    """Aligns a pair of images with a method and its classical rivals.

    Args:
        data: the pair; the map is fitted and judged where the fixed image's mask is.
        method: name of the method; must accept pairs.
        config: its configuration.
        run: seeds, device, folder. With a folder everything is written there.
        preset: which preset `config` started from, for the record.
        baselines: which rivals to run: 'none', 'fast' (seconds) or 'all'.
        landmarks: the same places of the body in the fixed and the moving image: judge the map, are never fitted.
        labels: segmentations of the fixed and the moving image, likewise.
        scan_facts: what else the report should say about the images, such as a window that was applied.
        request: what was asked for, kept in run.json.

    Raises:
        InputError: the method does not take pairs; landmarks or labels do not belong to the images.
    """
    api.check_accepts(method, data.kind)
    module = api.load(method)
    label = api.card(method).label
    judge = Judge(data, landmarks, labels, run.generator("probes"), run.device)
    table = Table(judge.columns())
    before = judge.row("identity", BEFORE, "baseline", nn.Identity(), 0.0)
    before.values = {k: v for k, v in before.values.items() if k in ("ncc", "mi", "dice") or k.startswith("tre")}
    facts = facts_of(run, method, preset, to_json(config), request or {}) | {"facts": scan_facts or {}}
    fixed, held_out = hold_out(data.fixed, _share(data), run.generator("held-out voxels"))
    begin(run, facts)

    with run.timed("fit"):
        unseen = None if held_out is None else Pair(held_out, data.moving)
        result: Reconstruction = module.fit(config, Pair(fixed, data.moving), run, held_out=unseen)
    result.provenance = {k: facts[k] for k in ("command", "inputs", "seed", "versions", "created")}
    result.provenance["moving_grid"] = data.moving.grid.to_json()
    maps: dict[str, nn.Module] = {method: mapping(result)}
    own = own_inverse(result)
    with run.timed("judge"):
        table.rows += [before, judge.row(method, label, "method", maps[method], run.timings["fit"], own)]
    for name, baseline in BASELINES.items():
        if run.stop.is_set() or baselines == "none" or (baselines == "fast" and not baseline.fast):
            continue
        run.tell({"baseline": baseline.label})
        try:
            with run.timed(name):
                maps[name] = baseline.register(data, _similarity(module, config), run)
        except InputError as error:  # a rival that cannot take this pair must not cost the user the method's result
            run.note(f"{baseline.label} is missing from the table: {error.what}.")
            continue
        table.rows.append(judge.row(name, baseline.label, "baseline", maps[name], run.timings[name]))
    _warn(run, table, label)

    pictures = [Picture("fixed", "fixed image", "reference", data.fixed.values.float())]
    pictures.append(Picture("identity", BEFORE, "baseline", _moved(nn.Identity(), data, run)))
    for name, phi in maps.items():
        if name == method:
            pictures.append(Picture("warped", label, "method", _moved(phi, data, run)))
        else:
            pictures.append(Picture(name, BASELINES[name].label, "baseline", _moved(phi, data, run)))
    outcome = Outcome(result, data.fixed.grid, pictures, table, run.folder)
    if run.folder is not None:
        with run.timed("maps"):
            _write_maps(run.folder, maps[method], own, data, run)
        _write_judged(run.folder, judge, maps)
        finish(
            run,
            facts,
            outcome,
            window=None,
            unit=data.fixed.unit,
            deformation={
                "displacement": "displacement.nii.gz",
                "determinant": "determinant.nii.gz",
                "fixed": "fixed",
                "before": "identity",
                "after": "warped",
            },
        )
    return outcome


def _share(data: Pair) -> float:
    """Of the fixed voxels held out of the fit: none where there are too few to spare."""
    count = data.fixed.grid.size if data.fixed.mask is None else int(data.fixed.mask.sum())
    return HELD_OUT_FRACTION if count * HELD_OUT_FRACTION >= 10 else 0.0


def _similarity(module: Any, config: Any) -> Literal["ncc", "mi"]:
    """What the rivals maximise: what the method does, where it says so."""
    asked = vars(module).get("similarity")
    found: Literal["ncc", "mi"] = "ncc" if asked is None else asked(config)
    return found


def _moved(phi: nn.Module, data: Pair, run: Run) -> Tensor:
    moving, fixed = data.moving, data.fixed
    return warped_image(phi, moving.values.float(), moving.grid, fixed.grid, run.device)[0]


def _warn(run: Run, table: Table, label: str) -> None:
    """What a reader should not have to find in the table."""
    before, after = (row.values for row in table.rows[:2])
    folded = after.get("folding_percent", 0.0)
    if folded > WORTH_A_WARNING:
        run.warn(f"{label} folds {folded:.2g} % of the points: there its map has no inverse; regularise more")
    if after.get("tre_mm", 0.0) > before.get("tre_mm", float("inf")):
        run.warn(f"the landmarks are farther apart after {label} than before")
    if "ncc" not in after:
        run.warn(f"{label} maps every point out of the moving image")


def _write_maps(folder: Path, phi: nn.Module, psi: nn.Module | None, data: Pair, run: Run) -> None:
    """Both displacement fields in both conventions, and the determinants."""
    fixed, moving = data.fixed.grid, data.moving.grid
    displacement, determinant = displacement_on(phi, fixed, run.device)
    back = inverse_on(phi, moving, run.device, psi)
    write_nifti(folder / "determinant.nii.gz", determinant, fixed)
    for stem, values, grid in (
        ("displacement", displacement, fixed),
        ("inverse_displacement", back.displacement, moving),
    ):
        _write_both(folder, stem, values, grid, run)
    run.note(
        "displacement.nii.gz holds phi(x) - x at the fixed image's voxels: a point of the fixed image goes to its "
        "place in the moving image, and the moving image is read there to be resampled onto the fixed grid. "
        "inverse_displacement.nii.gz lives on the moving grid and takes points back. Files called ..._itk hold the "
        "same for ITK, ANTs and SimpleITK (LPS)."
    )
    if back.reached < 0.9995:
        run.note(
            f"The inverse holds to {TOLERANCE_MM:g} mm at {100 * back.reached:.1f} % of the moving image's voxels; no "
            "point of the fixed image is mapped to the others, where the file has the best that was found."
        )


def _write_both(folder: Path, stem: str, values: Tensor, grid: Grid, run: Run) -> None:
    write_displacement(folder / f"{stem}.nii.gz", values, grid)
    try:
        write_itk_displacement(folder / f"{stem}_itk.nii.gz", values, grid)
    except InputError as error:  # a sheared grid
        run.note(f"There is no {stem}_itk.nii.gz: {error.what}.")


def _write_judged(folder: Path, judge: Judge, maps: dict[str, nn.Module]) -> None:
    """Landmarks and labels as the method maps them."""
    phi = next(iter(maps.values()))
    if judge.landmarks is not None:
        write_points(folder / "landmarks.csv", _mapped_landmarks(judge, phi))
    if judge.labels is not None:
        fixed, moving = judge.labels
        write_nifti(folder / "warped_labels.nii.gz", judge.warped_labels(phi), fixed.grid)
        scores = {"none": judge.dice(nn.Identity())} | {name: judge.dice(m) for name, m in maps.items()}
        names = moving.labels or fixed.labels or {}
        with write_atomically(folder / "dice.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["label", "name", *scores])
            for k in sorted({k for score in scores.values() for k in score}):
                cells = [f"{score[k]:.4f}" if k in score else "" for score in scores.values()]
                writer.writerow([k, names.get(k, ""), *cells])


def _mapped_landmarks(judge: Judge, phi: nn.Module) -> Points:
    """phi of the fixed landmarks; beside each where it was, where it should be, and both errors in mm."""
    assert judge.landmarks is not None
    fixed, moving = judge.landmarks
    mapped = map_points(phi, fixed.x, judge.device)

    def texts(values: Tensor) -> tuple[str, ...]:
        return tuple(f"{value:.4f}" for value in values.tolist())

    columns = {f"fixed_{axis}": texts(fixed.x[:, k]) for k, axis in enumerate("xyz")}
    columns |= {f"moving_{axis}": texts(moving.x[:, k]) for k, axis in enumerate("xyz")}
    columns["initial_mm"] = texts((fixed.x - moving.x).norm(dim=-1))
    columns["final_mm"] = texts((mapped - moving.x).norm(dim=-1))
    return Points(mapped, {**columns, **{k: v for k, v in fixed.columns.items() if k not in columns}})
