"""`scanfield segment IMAGE --model M -o RUN`: the classes of a trained model on any grid, surfaces, uncertainty."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanfield.cli.parser import Parser, add_backend, add_device, add_json, add_quiet, number, one_of
from scanfield.cli.text import hanging, remarks, voxel_text
from scanfield.data.write import whole_or_nothing
from scanfield.errors import InputError

if TYPE_CHECKING:
    from scanfield.run import Run
    from scanfield.tasks.segmentation import Segmentation, Surfaces

SURFACES: dict[str, Surfaces] = {"ply": "ply", "gii": "surf.gii", "none": "none"}


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield segment ...` and returns its exit code."""
    args = _parser().parse(argv[1:])
    if args.like is not None and args.spacing_mm is not None:
        raise InputError("the grid follows from --like or from --spacing-mm, not from both")
    if args.tolerance_mm is not None and args.reference is None:
        raise InputError("--tolerance-mm is for judging", fix="--reference LABELS")

    from scanfield.cli.inputs import absolute, output_grid, read_image
    from scanfield.cli.progress import progress
    from scanfield.kernels.backend import backend_for
    from scanfield.run import Run, choose_device
    from scanfield.tasks.model import Model, model_file
    from scanfield.tasks.segmentation import segment

    device = choose_device(args.device)
    backend_for(device, args.backend)  # one that cannot run is refused before anything is written
    model = Model.load(args.model)
    image = read_image(args.image)
    reference = None if args.reference is None else read_image(args.reference)
    grid = output_grid(image.grid, args.like, args.spacing_mm)
    files = [args.image, str(model_file(args.model)), args.reference, args.like]
    request = {
        "command": shlex.join(["scanfield", *argv]),
        "inputs": [absolute(name) for name in files if name is not None],
    }
    folder, display = Path(args.output), progress(quiet=args.quiet or args.json)
    run = Run(folder, device, replace=args.force, observers=(display,), backend=args.backend)
    if not (args.quiet or args.json):
        print(f"{model.method}, model {model.key}\n  image     {voxel_text(image.grid.shape, image.grid.spacing_mm)}")
        print(f"  output    {voxel_text(grid.shape, grid.spacing_mm)}; {device}", flush=True)
    with whole_or_nothing(folder), display:
        outcome = segment(
            image,
            model,
            run,
            grid=grid,
            reference=reference,
            tolerance_mm=args.tolerance_mm,
            refine=args.refine,
            largest=args.largest,
            surfaces=SURFACES[args.surfaces],
            request=request,
        )
    if args.json:
        print(json.dumps(_facts(folder, outcome, run)))
    elif not args.quiet:
        print(_text(folder, outcome, run))
    return 0


def _text(folder: Path, outcome: Segmentation, run: Run) -> str:
    said = remarks(run.warnings, run.notes)
    surfaces = ", ".join(sorted(path.name for path in folder.glob("surface*"))) or "none"
    lines = ["", outcome.table.to_text(), "", *said, *([""] if said else []), f"{folder}/"]
    lines += [
        "  report.html          outlines, uncertainty, numbers",
        "  segmentation.nii.gz  values of labels.csv",
        "  uncertainty.nii.gz   0: certain of one class, 1: all alike",
        hanging("  surfaces             ", surfaces),
        "  run.json             volumes, model, versions, numbers",
    ]
    return "\n".join(lines)


def _facts(folder: Path, outcome: Segmentation, run: Run) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "model": outcome.model,
        "table": outcome.table.to_json(),
        "volumes_ml": {name: outcome.volume_ml(name) for name in outcome.labels.names[1:]},
        "files": sorted(path.name for path in folder.iterdir() if path.is_file()),
        "warnings": run.warnings,
        "notes": run.notes,
        "timings": run.timings,
    }


def _parser() -> Parser:
    parser = Parser(
        "scanfield segment",
        "Segments an image with a trained model: classes on the image's own voxels or on any other grid, as finely as "
        "you ask, because the model is asked point by point. Writes the label map with its table, the uncertainty, a "
        "surface of every class, volumes, and a report.",
        takes="IMAGE --model M -o RUN [options]",
        examples=[
            "scanfield train iosnet --cohort cohort.csv --labels labels.csv -o model",
            "scanfield segment new.nii.gz --model model -o run",
            "scanfield segment new.nii.gz --model model -o run --spacing-mm 0.5 --refine",
            "scanfield segment new.nii.gz --model model -o run --reference expert.nii.gz",
        ],
    )
    parser.add_argument("image", metavar="IMAGE", help="NIfTI, DICOM folder, or sample:NAME")
    parser.add_argument("--model", metavar="M", required=True, help="what `scanfield train` wrote: folder or file")
    parser.add_argument("-o", "--output", metavar="RUN", required=True, help="folder for everything this run writes")
    parser.add_argument("--force", action="store_true", help="replace a run that is in the folder")

    where = parser.add_argument_group("where the classes are asked for (default: at the image's own voxels)")
    where.add_argument("--like", metavar="REF", help="on the grid of this image")
    where.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="on the image's grid with this voxel size"
    )
    where.add_argument(
        "--refine",
        action="store_true",
        help="at every fourth voxel first, then only near borders: faster on fine grids; misses what is smaller than "
        "four voxels",
    )

    result = parser.add_argument_group("what is written")
    result.add_argument("--largest", action="store_true", help="keep the largest connected part of every class alone")
    result.add_argument(
        "--surfaces",
        type=one_of(*SURFACES),
        default="ply",
        metavar="ply|gii|none",
        help="format of the surfaces (default: ply)",
    )

    judge = parser.add_argument_group("how it is judged")
    judge.add_argument(
        "--reference",
        metavar="LABELS",
        help="a label map with the same values, on any grid: Dice, surface Dice, HD95, ASSD of every class",
    )
    judge.add_argument(
        "--tolerance-mm",
        type=number(above=0),
        metavar="T",
        help="of the surface Dice (default: the reference's largest voxel size)",
    )

    how = parser.add_argument_group("how it runs")
    add_device(how)
    add_backend(how)
    add_quiet(how)
    add_json(how)
    return parser
