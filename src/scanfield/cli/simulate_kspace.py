"""`scanfield simulate kspace VOLUME -o SCAN`: a slice of an image becomes raw MR data of a moving object."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scanfield.cli.parser import Parser, add_json, add_quiet, count, number, one_of
from scanfield.cli.text import voxel_text
from scanfield.errors import InputError

if TYPE_CHECKING:
    from scanfield.data.rawmri import KSpace
    from scanfield.operators.simulate_kspace import KSpaceScanOptions


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield simulate kspace ...` and returns its exit code."""
    args = _parser().parse(argv[2:])
    if not args.output.endswith(".npz"):
        raise InputError("the name of a k-space file ends in .npz", where=args.output, fix=f"-o {args.output}.npz")

    from dataclasses import asdict, replace

    from scanfield.cli.inputs import read_image
    from scanfield.data.rawmri import write_kspace
    from scanfield.operators.simulate_kspace import KSpaceScanOptions, simulate_kspace, true_series

    image = read_image(args.volume)
    index = image.grid.shape[2] // 2 if args.slice_index is None else args.slice_index
    own = image.grid.slice(index)
    grid = None
    if args.matrix is not None:
        x, y = (own.shape[a] * own.spacing_mm[a] / n for a, n in enumerate(args.matrix))
        grid = own.resampled((x, y, own.spacing_mm[2]))
    options = KSpaceScanOptions(
        trajectory=args.trajectory,
        coils=args.coils,
        frames=args.frames,
        views_per_frame=args.spokes_per_frame,
        samples=args.samples,
        motion=args.motion,
        motion_mm=args.motion_mm,
        brightening_percent=args.brightening_percent,
        period_s=args.period_s,
        repetition_s=args.repetition_ms / 1000,
        phase_rad=args.phase_rad,
        noise_percent=args.noise_percent,
        seed=args.seed,
    )
    if args.truth is not None and not args.truth.endswith((".nii", ".nii.gz")):
        raise InputError("the name of an image ends in .nii or .nii.gz", where=args.truth, fix=f"{args.truth}.nii.gz")
    if args.phases is not None and (args.truth is None or options.motion not in ("beating", "both")):
        raise InputError(
            "--phases says where --truth lies within the beat", fix="add --truth FILE and --motion beating"
        )
    made = simulate_kspace(image, options, slice_index=index, grid=grid)
    kspace = made.kspace if not args.without_sensitivities else replace(made.kspace, sensitivities=None)
    provenance = {
        "volume": args.volume,
        "command": shlex.join(["scanfield", *argv]),
        "slice_index": index,
        "options": asdict(options),
    }
    write_kspace(args.output, kspace, truth=made.truth, provenance=provenance)
    if args.truth is not None:
        from scanfield.data.nifti import write_nifti

        truth, step = made.truth, options.views_per_frame * options.repetition_s
        if args.phases is not None:
            step = options.period_s / args.phases
            times = [(phase + 0.5) * step for phase in range(args.phases)]
            truth = true_series(image, options, times, slice_index=index, grid=grid)
        values = truth[0].abs() if len(truth) == 1 else truth.abs().movedim(0, -1)
        write_nifti(args.truth, values, kspace.acquisition.volume, unit=image.unit, step_s=step)
    facts = _summary(kspace, options)
    if args.json:
        print(json.dumps({"file": args.output, **facts}, indent=2))
    elif not args.quiet:
        print(_text(args.output, facts))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "scanfield simulate kspace",
        "Scans one slice of an image as raw MR data while a region of it beats or brightens: k-space of every coil, "
        "the trajectory, times, coil sensitivities and the true series, in one .npz file.",
        takes="VOLUME -o SCAN [options]",
        examples=[
            "scanfield simulate kspace sample:mr_head_volume -o scan.npz --motion both --matrix 96 96",
            "scanfield simulate kspace heart.nii.gz -o scan.npz --trajectory spiral --spokes-per-frame 4 --coils 16",
        ],
    )
    parser.add_argument("volume", metavar="VOLUME", help="NIfTI file, DICOM folder, or sample:NAME")
    parser.add_argument("-o", "--output", metavar="SCAN", required=True, help="file to write, .npz")
    parser.add_argument("--slice-index", type=count(least=0), metavar="I", help="to scan (default: the middle one)")
    parser.add_argument(
        "--matrix", type=count(), nargs=2, metavar=("NX", "NY"), help="voxels to reconstruct (default: the image's)"
    )

    scan = parser.add_argument_group("the scan")
    scan.add_argument(
        "--trajectory",
        type=one_of("radial", "spiral", "cartesian"),
        default="radial",
        metavar="radial|spiral|cartesian",
        help="golden-angle spokes or spirals, or random lines (default: radial)",
    )
    scan.add_argument("--coils", type=count(), default=8, metavar="C", help="around the slice (default: 8)")
    scan.add_argument("--frames", type=count(), default=20, metavar="T", help="of the series (default: 20)")
    scan.add_argument(
        "--spokes-per-frame", type=count(), default=8, metavar="S", help="or interleaves, or lines (default: 8)"
    )
    scan.add_argument("--samples", type=count(least=2), metavar="N", help="of a spoke (default: twice the matrix)")
    scan.add_argument(
        "--repetition-ms", type=number(above=0), default=5.0, metavar="T", help="from spoke to spoke (default: 5)"
    )
    scan.add_argument(
        "--without-sensitivities", action="store_true", help="leave the coils' maps out: they have to be estimated"
    )

    motion = parser.add_argument_group("the object")
    motion.add_argument(
        "--motion",
        type=one_of("none", "beating", "brightening", "both"),
        default="none",
        metavar="none|beating|brightening|both",
        help="of a region in the middle (default: none)",
    )
    motion.add_argument(
        "--motion-mm", type=number(least=0), default=4.0, metavar="D", help="peak displacement (default: 4)"
    )
    motion.add_argument(
        "--period-s", type=number(above=0), default=0.8, metavar="T", help="of the beating (default: 0.8)"
    )
    motion.add_argument(
        "--brightening-percent", type=number(least=0), default=60.0, metavar="P", help="at the end (default: 60)"
    )
    motion.add_argument(
        "--phase-rad", type=number(least=0), default=1.0, metavar="P", help="of the image, at most (default: 1)"
    )
    motion.add_argument(
        "--noise-percent", type=number(least=0), default=0.0, metavar="P", help="P %% of the bright tissue (default: 0)"
    )
    motion.add_argument("--truth", metavar="CINE", help="also write the true magnitudes of the frames as NIfTI")
    motion.add_argument("--phases", type=count(), metavar="P", help="--truth at P phases of the beat instead")
    motion.add_argument("--seed", type=count(least=0), default=0, metavar="S", help="(default: 0)")
    add_quiet(parser)
    add_json(parser)
    return parser


def _summary(kspace: KSpace, options: KSpaceScanOptions) -> dict[str, Any]:
    geometry = kspace.acquisition
    assert geometry.time_s is not None
    return {
        "trajectory": options.trajectory,
        "views": geometry.views,
        "coils": geometry.coils,
        "samples": geometry.shape[2],
        "frames": geometry.frame_count,
        "views_per_frame": options.views_per_frame,
        "duration_s": geometry.views * options.repetition_s,
        "motion": options.motion,
        "noise_sigma": kspace.noise.level,
        "seed": options.seed,
        "sensitivities": kspace.sensitivities is not None,
        "reconstruct_shape": list(geometry.volume.shape),
        "reconstruct_spacing_mm": list(geometry.volume.spacing_mm),
    }


def _text(path: str, facts: dict[str, Any]) -> str:
    names = {"radial": "spokes", "spiral": "interleaves", "cartesian": "lines"}
    views = names[facts["trajectory"]]
    shape, spacing = facts["reconstruct_shape"], facts["reconstruct_spacing_mm"]
    noise = f"standard deviation {facts['noise_sigma']:.4g}, seed {facts['seed']}" if facts["noise_sigma"] else "none"
    rows = [
        ("scan", f"{facts['views']} {views} of {facts['samples']} samples, {facts['coils']} coils"),
        ("frames", f"{facts['frames']} of {facts['views_per_frame']} {views}, {facts['duration_s']:.4g} s in all"),
        ("motion", facts["motion"]),
        ("noise", noise),
        ("coil maps", "in the file" if facts["sensitivities"] else "left out"),
        ("grid", voxel_text(shape, spacing)),
    ]
    return "\n".join([path, *(f"  {name:<12} {text}" for name, text in rows)])
