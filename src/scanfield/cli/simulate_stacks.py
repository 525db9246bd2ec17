"""`scanfield simulate stacks VOLUME -o DIR`: a volume becomes stacks of thick slices of a moving body."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanfield.cli.parser import Parser, add_json, add_quiet, count, number, one_of
from scanfield.data.write import new_folder
from scanfield.errors import InputError

if TYPE_CHECKING:
    from scanfield.operators.simulate_stacks import SimulatedStack

TRUTH = "truth.json"


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield simulate stacks ...` and returns its exit code."""
    args = _parser().parse(argv[2:])
    folder = new_folder(args.output)

    from dataclasses import asdict, replace

    from scanfield.cli.inputs import read_image
    from scanfield.data.pair import with_mask
    from scanfield.operators.simulate_stacks import StackScanOptions, simulate_stacks

    volume = read_image(args.volume)
    if args.mask is not None:
        volume = with_mask(volume, read_image(args.mask), "volume's")
    options = StackScanOptions(
        orientations=tuple(args.orientations.split(",")),
        thickness_mm=args.thickness_mm,
        gap_mm=args.gap_mm,
        in_plane_mm=args.in_plane_mm,
        motion=args.motion,
        motion_deg=args.motion_deg,
        motion_mm=args.motion_mm,
        correlation_shots=args.correlation_shots,
        interleave=args.interleave,
        multiband=args.multiband,
        outliers=args.outliers,
        noise_percent=args.noise_percent,
        psf=args.psf,
        margin_mm=args.margin_mm,
        seed=args.seed,
    )
    stacks = simulate_stacks(replace(volume, source=args.volume), options)
    provenance = {"volume": args.volume, "command": shlex.join(["scanfield", *argv]), "options": asdict(options)}
    facts = {"folder": args.output, "stacks": _write(folder, stacks, provenance), "truth": str(folder / TRUTH)}
    if args.json:
        print(json.dumps(facts, indent=2))
    elif not args.quiet:
        print(_text(facts))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "scanfield simulate stacks",
        "Scans a volume as stacks of thick slices while the body moves: NIfTI stacks with masks, and truth.json with "
        "the true pose of every slice.",
        takes="VOLUME -o DIR [options]",
        examples=[
            "scanfield simulate stacks sample:mr_head_volume -o stacks --motion-deg 4 --motion-mm 3 --outliers 0.1",
            "scanfield simulate stacks brain.nii.gz -o stacks --orientations axial,axial,coronal --thickness-mm 3",
        ],
    )
    parser.add_argument("volume", metavar="VOLUME", help="NIfTI file, DICOM folder, or sample:NAME")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="new folder to write into")
    parser.add_argument("--mask", metavar="FILE", help="where the body is (default: the largest part that is not dark)")

    scan = parser.add_argument_group("the stacks")
    scan.add_argument(
        "--orientations", default="axial,coronal,sagittal", metavar="A,B,..", help="(default: axial,coronal,sagittal)"
    )
    scan.add_argument("--thickness-mm", type=number(above=0), default=4.0, metavar="T", help="of a slice (default: 4)")
    scan.add_argument(
        "--gap-mm", type=number(), default=0.0, metavar="G", help="between slices, negative to overlap (default: 0)"
    )
    scan.add_argument("--in-plane-mm", type=number(above=0), metavar="R", help="pixel size (default: the voxel size)")
    scan.add_argument(
        "--psf",
        type=one_of("gaussian", "box-sinc"),
        default="box-sinc",
        metavar="gaussian|box-sinc",
        help="what a pixel sees (default: box-sinc, the profile of a sinc pulse, averaged over the pixel)",
    )
    scan.add_argument("--interleave", type=count(), default=2, metavar="K", help="every K-th slice first (default: 2)")
    scan.add_argument("--multiband", type=count(), default=1, metavar="B", help="slices at a time (default: 1)")
    scan.add_argument(
        "--margin-mm", type=number(least=0), default=10.0, metavar="M", help="around the body (default: 10)"
    )

    motion = parser.add_argument_group("motion, outliers, noise (default: none)")
    motion.add_argument(
        "--motion",
        type=one_of("walk", "independent"),
        default="walk",
        metavar="walk|independent",
        help="(default: walk)",
    )
    motion.add_argument("--motion-deg", type=number(least=0), default=0.0, metavar="D", help="SD about each axis")
    motion.add_argument("--motion-mm", type=number(least=0), default=0.0, metavar="D", help="SD along each axis")
    motion.add_argument(
        "--correlation-shots", type=number(above=0), default=4.0, metavar="C", help="smoothness of a walk (default: 4)"
    )
    motion.add_argument(
        "--outliers", type=number(least=0, most=0.5), default=0.0, metavar="P", help="share of spoilt slices, 0 to 0.5"
    )
    motion.add_argument(
        "--noise-percent", type=number(least=0), default=0.0, metavar="P", help="Rician, P %% of the bright tissue"
    )
    motion.add_argument("--seed", type=count(least=0), default=0, metavar="S", help="(default: 0)")
    add_quiet(parser)
    add_json(parser)
    return parser


def _write(folder: Path, stacks: Sequence[SimulatedStack], provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """The stacks, their masks and the truth into a folder; facts about each."""
    from scanfield.data.nifti import write_nifti
    from scanfield.data.stack_truth import StackTruth, write_truth

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder cannot be made: {error.strerror}", where=str(folder)) from None
    truths, facts = [], []
    for k, simulated in enumerate(stacks, 1):
        stack, name = simulated.stack, f"{k}_{simulated.orientation}"
        assert stack.scan.mask is not None
        file, mask = f"{name}.nii.gz", f"{name}_mask.nii.gz"
        write_nifti(folder / file, stack.scan.values, stack.scan.grid, unit=stack.scan.unit)
        write_nifti(folder / mask, stack.scan.mask.byte(), stack.scan.grid)
        truths.append(StackTruth(file, simulated.poses, simulated.outliers, stack.order))
        facts.append(
            {
                "file": str(folder / file),
                "mask": str(folder / mask),
                "slices": stack.count,
                "pixels": list(stack.plane_shape),
                "pixel_mm": stack.plane_spacing_mm[0],
                "thickness_mm": stack.thickness_mm,
                "gap_mm": stack.gap_mm,
                "outliers": simulated.outliers,
            }
        )
    write_truth(folder / TRUTH, truths, provenance)
    return facts


def _text(facts: dict[str, Any]) -> str:
    lines = [facts["folder"]]
    for stack in facts["stacks"]:
        spoilt = ", ".join(f"{number} {how}" for number, how in stack["outliers"].items())
        lines.append(
            f"  {Path(stack['file']).name:<24}{stack['slices']} slices of {stack['thickness_mm']:g} mm, gap "
            f"{abs(round(stack['gap_mm'], 3)):g} mm, {stack['pixels'][0]} x {stack['pixels'][1]} pixels of "
            f"{stack['pixel_mm']:.3g} mm{'; spoilt: ' + spoilt if spoilt else ''}"
        )
    return "\n".join([*lines, f"  {TRUTH:<24}the true pose of every slice"])
