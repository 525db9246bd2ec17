"""`scanfield simulate KIND VOLUME -o SCAN`: a real image becomes a measurement; here, a CT scan with noise."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from scanfield.cli.parser import Parser, add_json, add_quiet, count, number, one_of
from scanfield.cli.text import remarks, voxel_text
from scanfield.errors import InputError, nearest

if TYPE_CHECKING:
    from scanfield.data.measurement import Measurement
    from scanfield.data.scan import Scan
    from scanfield.operators.simulate import CtScanOptions
    from scanfield.space.grid import Grid
    from scanfield.space.projection import ProjectionGeometry

KINDS = {
    "ct": "CT projections of a CT image: parallel, fan or cone beam",
    "stacks": "stacks of thick MR slices of a moving body, with the true poses",
    "kspace": "raw MR data of a slice that beats or brightens, with the true series",
    "cells": "masks of objects that grow, move and divide, as a cohort of sequences",
}
USAGE = "\n".join(
    [
        "usage: scanfield simulate KIND VOLUME -o SCAN [options]",
        "",
        "Turns a real image into a measurement, with noise, that any method takes.",
        "",
        "kinds:",
        *(f"  {name:<8}{text}" for name, text in KINDS.items()),
        "",
        "  scanfield simulate KIND --help   its options",
    ]
)


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield simulate ...` and returns its exit code."""
    arguments = argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] not in KINDS:
        raise InputError(
            f"unknown kind of measurement '{arguments[0]}'{nearest(arguments[0], KINDS)}",
            fix=f"scanfield simulate {'|'.join(KINDS)} VOLUME -o SCAN",
        )
    if arguments[0] == "stacks":
        from scanfield.cli import simulate_stacks

        return simulate_stacks.main(argv)
    if arguments[0] == "kspace":
        from scanfield.cli import simulate_kspace

        return simulate_kspace.main(argv)
    if arguments[0] == "cells":
        from scanfield.cli import simulate_cells

        return simulate_cells.main(argv)
    return _ct(_ct_parser().parse(arguments[1:]), ["scanfield", *argv])


def _ct_parser() -> Parser:
    parser = Parser(
        "scanfield simulate ct",
        "Scans a CT image: exact line integrals through its voxels, noise, and the geometry, in one .npz file.",
        takes="VOLUME -o SCAN [options]",
        examples=[
            "scanfield simulate ct sample:ct_chest_slice -o scan.npz --views 45 --photons 1e5",
            "scanfield simulate ct chest.nii.gz -o scan.npz --slice-index 40 --geometry fan --detector arc --views 60",
            "scanfield simulate ct chest.nii.gz -o scan.npz --slice-index 4 --spectrum 120kVp --insert gold,0,20,-90,6",
            "scanfield simulate ct dicom_folder/ -o scan.npz --views 90 --noise-percent 1 --spacing-mm 1.5",
            "scanfield simulate ct chest.nii.gz -o scan.npz --geometry cone --views 40 --spacing-mm 3 --photons 1e5",
        ],
    )
    parser.add_argument("volume", metavar="VOLUME", help="NIfTI file, DICOM folder, or sample:NAME")
    parser.add_argument("-o", "--output", metavar="SCAN", required=True, help="file to write, .npz")

    image = parser.add_argument_group("the image")
    image.add_argument("--series", metavar="ID", help="of a DICOM folder with several: index or SeriesInstanceUID")
    image.add_argument(
        "--slice-index", type=count(least=0), metavar="I", help="scan one slice (default: the whole volume)"
    )
    image.add_argument(
        "--unit", type=one_of("auto", "HU", "1/mm"), default="auto", metavar="auto|HU|1/mm", help="unit of its values"
    )
    image.add_argument(
        "--mu-water-per-mm",
        type=number(above=0),
        metavar="MU",
        help="attenuation of water that HU refer to (default: 0.01929, water at 70 keV)",
    )

    scan = parser.add_argument_group("the scan")
    scan.add_argument(
        "--geometry",
        type=one_of("parallel", "fan", "cone"),
        default="parallel",
        metavar="parallel|fan|cone",
        help="(default: parallel)",
    )
    scan.add_argument(
        "--detector",
        type=one_of("flat", "arc"),
        default="flat",
        metavar="flat|arc",
        help="of a fan or cone beam (default: flat)",
    )
    scan.add_argument("--views", type=count(), default=60, metavar="N", help="evenly over the arc (default: 60)")
    scan.add_argument(
        "--arc-deg", type=number(above=0, most=360), metavar="A", help="(default: 180 for parallel, else 360)"
    )
    scan.add_argument(
        "--start-deg", type=number(), default=0.0, metavar="A", help="angle of the first view (default: 0)"
    )
    scan.add_argument("--detector-bins", type=count(), metavar="D", help="(default: they cover the volume's diagonal)")
    scan.add_argument(
        "--bin-mm", type=number(above=0), metavar="W", help="on the detector (default: the voxel, magnified)"
    )
    scan.add_argument(
        "--detector-rows", type=count(), metavar="R", help="of a cone beam (default: they cover the volume's height)"
    )
    scan.add_argument(
        "--row-mm", type=number(above=0), metavar="W", help="height of a row (default: the slice's, magnified)"
    )
    scan.add_argument(
        "--detector-offset-mm",
        type=number(),
        nargs=2,
        default=(0.0, 0.0),
        metavar=("V", "U"),
        help="shift of the detector along the rotation axis (cone beam) and along its columns (default: 0 0)",
    )
    scan.add_argument(
        "--source-to-axis-mm", type=number(above=0), metavar="L", help="of a fan or cone (default: 541, or more)"
    )
    scan.add_argument("--source-to-detector-mm", type=number(above=0), metavar="L", help="(default: 949, or more)")

    noise = parser.add_argument_group("noise (default: none)")
    noise.add_argument("--photons", type=number(least=1), metavar="I0", help="Poisson, I0 photons per pixel in air")
    noise.add_argument(
        "--noise-percent", type=number(least=0), metavar="P", help="Gaussian, P %% of the largest line integral"
    )
    noise.add_argument("--seed", type=count(least=0), default=0, metavar="S", help="(default: 0)")

    xrays = parser.add_argument_group("the X-rays (default: of one energy)")
    xrays.add_argument(
        "--spectrum", metavar="S", help="polychromatic: 120kVp (a tube), or a file of energies in keV and photons"
    )
    xrays.add_argument(
        "--insert",
        action="append",
        metavar="MATERIAL,X,Y,Z,R",
        help="put a sphere into the image, world mm: titanium,10,-35,120,8; may be given several times",
    )
    xrays.add_argument("--metal-output", metavar="MASK", help="write where the inserts are, on the grid below")

    grid = parser.add_argument_group("the grid to reconstruct on (default: the image's)")
    grid.add_argument(
        "--spacing-mm", type=number(above=0), metavar="S", help="voxel size within slices; of a cone beam, in all axes"
    )
    grid.add_argument(
        "--reconstruction-shape", type=count(), nargs=2, metavar=("NX", "NY"), help="voxels within slices"
    )
    add_quiet(parser)
    add_json(parser)
    return parser


def _ct(args: argparse.Namespace, command: list[str]) -> int:
    if not args.output.endswith(".npz"):
        raise InputError("the name of a projections file ends in .npz", where=args.output, fix=f"-o {args.output}.npz")
    if args.photons is not None and args.noise_percent is not None:
        raise InputError("noise comes from --photons or from --noise-percent, not from both")
    if args.spectrum is None and args.insert:
        raise InputError("an insert needs the spectrum that it attenuates", where="--insert", fix="--spectrum 120kVp")
    if args.metal_output is not None and not args.insert:
        raise InputError("there is no metal to write", where="--metal-output", fix="--insert MATERIAL,X,Y,Z,R")

    from scanfield.cli.inputs import read_image
    from scanfield.data.hounsfield import MU_WATER_PER_MM
    from scanfield.data.projections import ProjectionFacts, write_projections
    from scanfield.operators.simulate import CtScanOptions, simulate_ct

    image = read_image(args.volume, series=args.series)
    mu_water = args.mu_water_per_mm or MU_WATER_PER_MM
    scanned = image.grid if args.slice_index is None else image.grid.slice(args.slice_index)
    options = CtScanOptions(
        beam=args.geometry,
        detector=args.detector,
        views=args.views,
        arc_deg=args.arc_deg,
        start_deg=args.start_deg,
        bins=args.detector_bins,
        bin_mm=args.bin_mm,
        rows=args.detector_rows,
        row_mm=args.row_mm,
        offset_mm=tuple(args.detector_offset_mm),
        source_to_axis_mm=args.source_to_axis_mm,
        source_to_detector_mm=args.source_to_detector_mm,
        photons=args.photons,
        noise_percent=args.noise_percent,
        seed=args.seed,
    )
    how: dict[str, Any] = {
        "slice_index": args.slice_index,
        "grid": reconstruction_grid(scanned, args.spacing_mm, args.reconstruction_shape, cone=args.geometry == "cone"),
        "unit": args.unit,
        "mu_water_per_mm": mu_water,
    }
    polychromatic = args.spectrum is not None
    measurement = _polychromatic(args, image, options, how) if polychromatic else simulate_ct(image, options, **how)
    provenance = {"command": shlex.join(command), "options": asdict(options), "slice_index": args.slice_index}
    write_projections(args.output, measurement, ProjectionFacts(mu_water, provenance))
    facts = _summary(measurement, options, scanned, mu_water)
    if args.json:
        print(json.dumps({"file": args.output, **facts}, indent=2))
    elif not args.quiet:
        print(_text(args.output, facts))
    return 0


def _polychromatic(
    args: argparse.Namespace, image: Scan, options: CtScanOptions, how: dict[str, Any]
) -> Measurement[ProjectionGeometry]:
    """The scan through a spectrum, with its inserts; writes where they are if asked to."""
    from scanfield.data.nifti import write_nifti
    from scanfield.data.tubes import spectrum_of
    from scanfield.operators.simulate_spectrum import Insert, inserted, simulate_spectral_ct

    inserts = [Insert.parse(text) for text in args.insert or []]
    measurement = simulate_spectral_ct(image, options, spectrum_of(args.spectrum), inserts, **how)
    if args.metal_output is not None:
        volume = measurement.acquisition.volume
        write_nifti(args.metal_output, inserted(inserts, volume).float(), volume, unit="1")
    return measurement


def reconstruction_grid(
    scanned: Grid, spacing_mm: float | None, shape: Sequence[int] | None, *, cone: bool = False
) -> Grid:
    """The scanned grid with another voxel size (of a cone beam, in all axes) or number of voxels within its slices."""
    if spacing_mm is not None and shape is not None:
        raise InputError("the grid follows from --spacing-mm or from --reconstruction-shape, not from both")
    between = scanned.spacing_mm[2]
    if spacing_mm is not None:
        return scanned.resampled((spacing_mm, spacing_mm, spacing_mm if cone else between))
    if shape is not None:
        x, y = (scanned.shape[a] * scanned.spacing_mm[a] / n for a, n in enumerate(shape))
        return scanned.resampled((x, y, between))
    return scanned


def _summary(
    measurement: Measurement[ProjectionGeometry], options: CtScanOptions, scanned: Grid, mu_water: float
) -> dict[str, Any]:
    from scanfield.operators.simulate import field_radius_mm, height_on_detector_mm, measured_radius_mm

    geometry = measurement.acquisition
    facts: dict[str, Any] = {
        "beam": geometry.beam,
        "detector": geometry.detector.kind,
        "views": geometry.views,
        "first_deg": float(geometry.angles_deg[0]),
        "last_deg": float(geometry.angles_deg[-1]),
        "rows": geometry.detector.shape[0],
        "row_mm": geometry.detector.spacing[0],
        "bins": geometry.detector.shape[1],
        "bin_spacing": geometry.detector.spacing[1],
        "bin_unit": "mm" if geometry.detector.kind == "flat" else "deg",
        "source_to_axis_mm": geometry.source_to_axis_mm,
        "source_to_detector_mm": geometry.source_to_detector_mm,
        "noise": asdict(measurement.noise),
        "seed": options.seed,
        "largest_line_integral": float(measurement.values.max()),
        "mu_water_per_mm": mu_water,
        "mean_kev": None if measurement.spectrum is None else measurement.spectrum.mean_kev,
        "reconstruct_shape": list(geometry.volume.shape),
        "reconstruct_spacing_mm": list(geometry.volume.spacing_mm),
        "warnings": [],
    }
    if measurement.noise.kind == "poisson":
        starved = int((measurement.values >= math.log(measurement.noise.level) - 1e-6).sum())
        if starved:
            facts["warnings"].append(
                f"{starved} of {measurement.values.numel()} pixels received no photon or one; they are set to one"
            )
    needed, seen = field_radius_mm(scanned), measured_radius_mm(geometry)
    if seen < 0.999 * needed:
        facts["warnings"].append(
            f"the detector sees a circle of {2 * seen:.0f} mm, the image's diagonal is {2 * needed:.0f} mm: "
            "attenuation outside the circle truncates the scan"
        )
    if geometry.beam == "cone":
        rows, row_mm = geometry.detector.shape[0], geometry.detector.spacing[0]
        high = height_on_detector_mm(scanned, geometry.source_to_axis_mm, geometry.source_to_detector_mm)
        covered = rows * row_mm - 2 * abs(geometry.detector.offset[0])
        if covered < 0.999 * high:
            facts["warnings"].append(
                f"the volume appears up to {high:.0f} mm high on the detector, whose rows cover {covered:.0f} mm of "
                "that: its top and bottom are missing in some views"
            )
    return facts


def _text(path: str, facts: dict[str, Any]) -> str:
    source_near = facts["beam"] != "parallel"
    beam = f"{facts['beam']} beam, {facts['detector']} detector" if source_near else "parallel beam"
    rows_of = f" of {facts['row_mm']:.4g} mm" if facts["beam"] == "cone" else ""
    bins_of = f"{facts['bin_spacing']:.4g} {facts['bin_unit']}"
    noise = {
        "none": "none",
        "poisson": f"Poisson, {facts['noise']['level']:g} photons per pixel in air, seed {facts['seed']}",
        "gaussian": f"Gaussian, standard deviation {facts['noise']['level']:.4g}, seed {facts['seed']}",
    }[facts["noise"]["kind"]]
    n, spacing = facts["reconstruct_shape"], facts["reconstruct_spacing_mm"]
    rows = [
        ("scan", f"{beam}, {facts['views']} views from {facts['first_deg']:g} to {facts['last_deg']:.6g} deg"),
        ("detector", f"{facts['rows']}{rows_of} x {facts['bins']} bins of {bins_of}"),
        ("noise", noise),
        ("values", f"line integrals up to {facts['largest_line_integral']:.3g} (dimensionless)"),
        ("attenuation", f"mu = {facts['mu_water_per_mm']:g} (1 + HU / 1000) per mm, at least 0"),
        ("grid", voxel_text(n, spacing)),
    ]
    if facts["mean_kev"] is not None:
        rows.insert(4, ("spectrum", f"polychromatic, {facts['mean_kev']:.4g} keV on average; values not corrected"))
    if source_near:
        source = (
            f"{facts['source_to_axis_mm']:.4g} mm to the axis, {facts['source_to_detector_mm']:.4g} mm to the detector"
        )
        rows.insert(2, ("source", source))
    lines = [path, *(f"  {name:<12} {text}" for name, text in rows)]
    return "\n".join([*lines, *remarks(facts["warnings"])])
