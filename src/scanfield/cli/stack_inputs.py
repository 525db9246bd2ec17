"""The options by which commands take stacks of slices, and the stacks they describe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from scanfield.cli.parser import count, number
from scanfield.errors import InputError

if TYPE_CHECKING:
    import argparse

    from scanfield.data.stacks import Stack


def add_stack_options(parser: argparse._ActionsContainer, *, allow_parallel: bool = True) -> None:
    """Adds everything that says what the slices of stacks are and which pixels count, besides the files themselves.

    Args:
        allow_parallel: whether that is a question; otherwise the command sets `allow_parallel` itself.
    """
    parser.add_argument(
        "--thickness-mm",
        type=number(),
        nargs="+",
        metavar="T",
        help="thickness of a slice, one for all stacks or one each; not the gap (default: no gap)",
    )
    parser.add_argument(
        "--slice-axis",
        type=count(least=0),
        metavar="0|1|2",
        help="voxel axis across the slices (default: that of the largest voxels)",
    )
    parser.add_argument(
        "--interleave",
        type=count(),
        metavar="K",
        help="every K-th slice is acquired in one pass (default: SliceTiming of the JSON file beside a stack, else 1)",
    )
    parser.add_argument("--multiband", type=count(), metavar="B", help="slices acquired at a time (default: as above)")
    parser.add_argument("--stack-masks", nargs="+", metavar="FILE", help="a mask for every stack, on its own pixels")
    parser.add_argument(
        "--fix-mask-header", action="store_true", help="place --stack-masks where their stacks are, whatever they say"
    )
    parser.add_argument("--volume-mask", metavar="FILE", help="a mask on any grid, for all stacks")
    parser.add_argument(
        "--correct-bias",
        action="store_true",
        help="divide every stack by its smooth bias field, found by N4 within its mask (needs SimpleITK)",
    )
    parser.add_argument("--background-threshold", type=number(), metavar="I", help="leave out pixels of at most I")
    parser.add_argument("--otsu", action="store_true", help="leave out the dark pixels of every stack (Otsu)")
    parser.add_argument("--intersection", action="store_true", help="leave out what not all stacks show")
    if allow_parallel:
        parser.add_argument("--allow-parallel", action="store_true", help="accept stacks of one orientation only")


def read_stacks(names: Sequence[str], args: argparse.Namespace) -> list[Stack]:
    """The stacks of the files `names`, with masks, as the options of `add_stack_options` say.

    Raises:
        InputError: see `read_stack`, `data.stack_masks` and `check_stacks`; not as many masks or thicknesses as stacks.
    """
    from dataclasses import replace

    from scanfield.cli.inputs import input_path, read_image
    from scanfield.data import stack_masks
    from scanfield.data.itk import without_bias_field
    from scanfield.data.stacks import check_stacks, read_stack

    thicknesses = _one_each("--thickness-mm", args.thickness_mm or [None], names)
    masks = args.stack_masks or []
    if masks and len(masks) != len(names):
        raise InputError(f"{len(names)} stacks need as many masks, got {len(masks)}", where="--stack-masks")
    if args.fix_mask_header and not masks:
        raise InputError("there are no masks whose headers could be fixed", fix="give --stack-masks")
    stacks = [
        read_stack(
            input_path(name), t, slice_axis=args.slice_axis, interleave=args.interleave, multiband=args.multiband
        )
        for name, t in zip(names, thicknesses, strict=True)
    ]
    for k, mask in enumerate(masks):
        stacks[k] = stack_masks.with_stack_mask(stacks[k], read_image(mask), fix_header=args.fix_mask_header)
    steps: list[Callable[[Stack], Stack]] = []
    if args.volume_mask is not None:
        volume_mask = read_image(args.volume_mask)
        steps.append(lambda stack: stack_masks.from_volume_mask(stack, volume_mask))
    if args.correct_bias:
        steps.append(lambda stack: replace(stack, scan=without_bias_field(stack.scan)))
    if args.background_threshold is not None:
        steps.append(lambda stack: stack_masks.above(stack, args.background_threshold))
    if args.otsu:
        steps.append(stack_masks.otsu)
    for step in steps:
        stacks = [step(stack) for stack in stacks]
    check_stacks(stacks, allow_parallel=args.allow_parallel)
    return stack_masks.intersection(stacks) if args.intersection else stacks


def _one_each(option: str, values: Sequence[float | None], names: Sequence[str]) -> Sequence[float | None]:
    if len(values) not in (1, len(names)):
        raise InputError(
            f"give one number for all stacks, or one for each of {len(names)}; got {len(values)}", where=option
        )
    return list(values) * len(names) if len(values) == 1 else values
