"""`scanfield assess STACK..`: which stacks moved least, and which slices look like neither neighbour."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanfield.cli.parser import Parser, add_json, add_quiet, count, one_of
from scanfield.cli.stack_inputs import add_stack_options, read_stacks
from scanfield.cli.text import hanging
from scanfield.errors import InputError

if TYPE_CHECKING:
    from scanfield.data.stacks import Stack

METRICS = {"ncc": ("neighbour_ncc", -1), "rank": ("motion_rank", 1), "volume": ("mask_ml", -1)}


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield assess ...` and returns its exit code."""
    args = _parser().parse(argv[1:])
    args.allow_parallel = True  # one stack can be judged as well as several
    stacks = read_stacks(args.stacks, args)
    if args.write_masks is not None:
        _write_masks(Path(args.write_masks), stacks)
    key, sign = METRICS[args.metric]
    facts = sorted((_facts(stack) for stack in stacks), key=lambda f: (math.isnan(f[key]), sign * f[key]))
    facts = facts[: args.best] if args.best else facts
    if args.json:
        print(json.dumps({"metric": args.metric, "stacks": [_plain(stack) for stack in facts]}, indent=2))
    elif args.quiet:
        print("\n".join(stack["file"] for stack in facts))
    else:
        print(_text(facts, args.metric))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "scanfield assess",
        "Ranks stacks of slices by how consistent they are, before anything is reconstructed: ncc, similarity of "
        "neighbouring slices (higher is better); rank, how many patterns the slices need, over their number (lower is "
        "better); volume, of the mask. Compare stacks of one protocol. Suspicious slices are unlike both neighbours, "
        "or much darker or brighter than those around.",
        takes="STACK.. [options]",
        examples=[
            "scanfield assess axial.nii.gz coronal.nii.gz sagittal.nii.gz",
            "scanfield assess *_T2w.nii.gz --stack-masks *_mask.nii.gz --metric rank",
            "scanfield assess *_T2w.nii.gz --best 3 --quiet          names only, for other commands",
            "scanfield assess *_T2w.nii.gz --volume-mask brain.nii.gz --otsu --write-masks masks",
        ],
    )
    parser.add_argument("stacks", nargs="+", metavar="STACK", help="NIfTI files")
    parser.add_argument(
        "--metric", type=one_of(*METRICS), default="ncc", metavar="|".join(METRICS), help="to rank by (default: ncc)"
    )
    parser.add_argument("--best", type=count(), metavar="N", help="show only the N best")
    parser.add_argument(
        "--write-masks",
        metavar="DIR",
        help="write the mask that the options below give to every stack, with that stack's header, to look at or edit",
    )
    add_stack_options(parser, allow_parallel=False)
    add_quiet(parser)
    add_json(parser)
    return parser


def _write_masks(folder: Path, stacks: Sequence[Stack]) -> None:
    import torch

    from scanfield.data.stack_masks import write_mask_like

    names = [Path(stack.scan.source).name.removesuffix(".gz").removesuffix(".nii") for stack in stacks]
    if len(set(names)) < len(names):
        raise InputError("two stacks have the same file name: their masks would, too", where=", ".join(names))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder cannot be made: {error.strerror}", where=str(folder)) from None
    for name, stack in zip(names, stacks, strict=True):
        whole = torch.ones(stack.scan.grid.shape, dtype=torch.bool)
        mask = whole if stack.scan.mask is None else stack.scan.mask
        write_mask_like(folder / f"{name}_mask.nii.gz", mask, stack.scan.source)


def _facts(stack: Stack) -> dict[str, Any]:
    from scanfield.metrics.stacks import lone_slices, mask_volume_ml, mean_neighbour_ncc, motion_rank, suspicious_slices

    return {
        "file": stack.scan.source,
        "slices": stack.count,
        "pixels": list(stack.plane_shape),
        "pixel_mm": list(stack.plane_spacing_mm),
        "thickness_mm": stack.thickness_mm,
        "gap_mm": stack.gap_mm,
        "neighbour_ncc": mean_neighbour_ncc(stack),
        "motion_rank": motion_rank(stack),
        "mask_ml": mask_volume_ml(stack),
        "suspicious": suspicious_slices(stack),
        "similarity": [round(value, 4) for value in lone_slices(stack).tolist()],
    }


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    facts = {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in facts.items()}
    return facts | {"similarity": [None if math.isnan(v) else v for v in facts["similarity"]]}


def _text(facts: Sequence[dict[str, Any]], metric: str) -> str:
    names = [Path(stack["file"]).name for stack in facts]
    wide = max(map(len, names))
    marks = {name: "*" if name == metric else "" for name in METRICS}
    head = f"{'stack':<{wide}}  slices  thickness  gap/mm  {'ncc' + marks['ncc']:>6}  {'rank' + marks['rank']:>6}"
    lines = [f"{head}  {'ml' + marks['volume']:>7}  suspicious slices"]
    for name, stack in zip(names, facts, strict=True):
        numbers = f"{stack['slices']:>6}  {stack['thickness_mm']:>6.2f} mm  {round(stack['gap_mm'], 2) + 0:>6.2f}"
        scores = f"{stack['neighbour_ncc']:>6.3f}  {stack['motion_rank']:>6.3f}  {stack['mask_ml']:>7.1f}"
        suspicious = ", ".join(f"{k} {why}" for k, why in stack["suspicious"].items()) or "-"
        lines.append(f"{name:<{wide}}  {numbers}  {scores}  {suspicious}")
    best = {"ncc": "higher is better", "rank": "lower is better", "volume": "larger first"}[metric]
    lines.append(hanging("", f"* ranked by {metric}, {best}; slices are counted from 0"))
    return "\n".join(lines)
