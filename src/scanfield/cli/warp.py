"""`scanfield warp RUN IMAGE|LABELS|POINTS.csv -o OUT`: a registration applied, from its field.safetensors alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scanfield.cli.parser import Parser, add_device, add_json, add_quiet
from scanfield.errors import InputError

if TYPE_CHECKING:
    import argparse

    import torch

    from scanfield.space.grid import Grid
    from scanfield.tasks.result import Reconstruction

_NIFTI = (".nii", ".nii.gz")


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield warp ...` and returns its exit code."""
    args = _parser().parse(argv[1:])
    points = args.what.lower().endswith(".csv")
    if points and (args.labels or args.like is not None):
        raise InputError("--labels and --like are for images, points have no grid", where=args.what)
    if points and not args.output.lower().endswith(".csv"):
        raise InputError("points are written to a file that ends in .csv", where=args.output)
    if not points and not args.output.endswith(_NIFTI):
        raise InputError(
            "the name of an image ends in .nii or .nii.gz", where=args.output, fix=f"-o {args.output}.nii.gz"
        )
    from scanfield.run import choose_device
    from scanfield.shortcuts import open_result

    result = open_result(args.run, args.device)
    device = choose_device(args.device)
    facts, warnings = (_points if points else _image)(args, result, device)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print(json.dumps({"file": args.output, "method": result.method, **facts, "warnings": warnings}))
    elif not args.quiet:
        print(f"{args.output}\n  {facts['text']}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "scanfield warp",
        "Applies a registration to an image, to labels or to points. A point of the fixed image goes to its place in "
        "the moving image; an image in the space of the moving one is resampled onto the fixed grid. With --inverse "
        "the other way round: points of the moving image go to the fixed one, an image in the space of the fixed one "
        "comes onto the moving grid. Only the run's field.safetensors is needed.",
        takes="RUN IMAGE|POINTS.csv -o OUT [options]",
        examples=[
            "scanfield warp run inhale.nii.gz -o on_exhale.nii.gz",
            "scanfield warp run inhale_organs.nii.gz -o organs_on_exhale.nii.gz --labels",
            "scanfield warp run exhale_points.csv -o in_inhale.csv          header x,y,z; mm, RAS+",
            "scanfield warp run inhale_points.csv -o in_exhale.csv --inverse",
        ],
    )
    parser.add_argument("run", metavar="RUN", help="folder of `scanfield register`, or its field.safetensors")
    parser.add_argument("what", metavar="IMAGE|POINTS.csv", help="what to move: NIfTI, DICOM folder, or CSV with x,y,z")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write: .nii, .nii.gz or .csv")
    parser.add_argument("--inverse", action="store_true", help="from the moving image to the fixed one")
    parser.add_argument(
        "--labels", action="store_true", help="the image is a segmentation: its values are kept as they are"
    )
    parser.add_argument(
        "--like", metavar="IMAGE", help="onto the grid of this image (default: the fixed, or moving, image's)"
    )
    add_device(parser)
    add_quiet(parser)
    add_json(parser)
    return parser


def _points(args: argparse.Namespace, result: Reconstruction, device: torch.device) -> tuple[dict[str, Any], list[str]]:
    from scanfield.data.points import Points, check_inside, looks_like_voxels, read_points, write_points
    from scanfield.tasks.warp import TOLERANCE_MM, inside, map_points, mapping, moving_grid, own_inverse, solve_inverse

    points, phi, warnings = read_points(args.what), mapping(result), []
    grid = moving_grid(result) if args.inverse else result.spec.grid
    here, there = ("moving", "fixed") if args.inverse else ("fixed", "moving")
    if grid is not None:
        within = inside(grid, points.x)
        if looks_like_voxels(points.x, grid) or not bool(within.any()):
            check_inside(points, grid, image=f"{here} image")
        outside = int((~within).sum())
        if outside:
            warnings.append(
                f"{outside} of {len(points.x)} points lie outside the {here} image, where nothing was fitted"
            )
    facts: dict[str, Any] = {"points": len(points.x), "from": here, "to": there}
    if args.inverse:
        mapped = map_points(own_inverse(result) or solve_inverse(phi), points.x, device)
        residual = (map_points(phi, mapped, device) - points.x).norm(dim=-1)
        facts["residual_mm"] = float(residual.max())
        lost = int((residual > TOLERANCE_MM).sum())
        if lost:
            warnings.append(
                f"no point of the fixed image is mapped to {lost} of {len(residual)} points within {TOLERANCE_MM:g} "
                f"mm; the nearest found is up to {facts['residual_mm']:.3g} mm off"
            )
    else:
        mapped = map_points(phi, points.x, device)
    write_points(args.output, Points(mapped, points.columns))
    facts["text"] = f"{len(points.x)} points of the {here} image, at their places in the {there} image (mm, RAS+)"
    return facts, warnings


def _image(args: argparse.Namespace, result: Reconstruction, device: torch.device) -> tuple[dict[str, Any], list[str]]:
    from scanfield.cli.fit import voxels
    from scanfield.cli.inputs import read_image
    from scanfield.data.nifti import write_nifti
    from scanfield.metrics.registration import warped_labels
    from scanfield.tasks.warp import Map, inverse_near, mapping, own_inverse, warped_image, whole_numbers

    phi, scan = mapping(result), read_image(args.what)
    if scan.values.ndim != 3:
        raise InputError("an image of one channel is expected", where=args.what, fix="extract one channel")
    grid = _target(args, result)
    here, there = ("fixed", "moving") if args.inverse else ("moving", "fixed")
    move: Map = (own_inverse(result) or inverse_near(phi, grid, device)) if args.inverse else phi
    image, shown = warped_image(move, scan.values.float(), scan.grid, grid, device)
    share = float(shown.double().mean())
    if share == 0:
        raise InputError(
            f"no voxel of the {there} grid is mapped into this image",
            where=args.what,
            fix=f"give an image in the space of the {here} one"
            + ("" if args.inverse else ", or --inverse for one in the space of the fixed one"),
        )
    if args.labels:
        values = whole_numbers(scan)
        write_nifti(args.output, warped_labels(lambda x: move(x.to(device)).cpu(), values, scan.grid, grid), grid)
    else:
        write_nifti(args.output, image, grid, unit=scan.unit)
    facts = {"shape": list(grid.shape), "from": here, "to": there, "covered": share}
    facts["text"] = f"resampled onto {voxels(grid)}, {100 * share:.3g} % of them inside {args.what}"
    return facts, []


def _target(args: argparse.Namespace, result: Reconstruction) -> Grid:
    """The grid to resample onto."""
    from scanfield.cli.inputs import read_image
    from scanfield.tasks.warp import moving_grid

    if args.like is not None:
        return read_image(args.like).grid
    if not args.inverse:
        return result.spec.grid
    grid = moving_grid(result)
    if grid is None:
        raise InputError(
            "this result does not say on which grid its moving image lies", where=args.run, fix="--like MOVING_IMAGE"
        )
    return grid
