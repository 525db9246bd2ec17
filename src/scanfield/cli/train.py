"""`scanfield train METHOD --cohort cohort.csv -o MODEL`: a model from many images, and `--resume MODEL` to continue."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanfield.cli.method_flags import add_how, parse, resumed, resumes
from scanfield.cli.parser import Parser, one_of
from scanfield.cli.request import TrainRequest
from scanfield.cli.text import remarks
from scanfield.errors import InputError
from scanfield.methods.config import PRESETS

if TYPE_CHECKING:
    from scanfield.run import Run
    from scanfield.tasks.model import Model


def main(argv: Sequence[str]) -> int:
    """Runs `scanfield train ...` and returns its exit code."""
    arguments = argv[1:]
    if resumes(arguments):
        found = resumed(TrainRequest, arguments)
        if found is None:
            return 0
        args, request, config = found
        return _train(request, config, Path(args.resume), args, force=False, resume=True)
    parser = _parser()
    if not arguments or arguments[0].startswith("-"):
        parser.parse(arguments)  # for --help
        raise InputError("the method comes first", fix="scanfield train METHOD --cohort COHORT.csv -o MODEL")
    args, config = parse(parser, arguments, method=arguments[0])
    cohort = str(Path(args.cohort).resolve())
    labels = None if args.labels is None else str(Path(args.labels).resolve())
    request = TrainRequest(
        command=shlex.join(["scanfield", *argv]),
        inputs=[cohort] if labels is None else [cohort, labels],
        method=args.method,
        preset=args.preset,
        seed=args.seed,
        device=args.device,
        baselines="none",
        backend=args.backend,
        cohort=cohort,
        licence=args.licence,
        labels=labels,
    )
    return _train(request, config, Path(args.output), args, force=args.force, resume=False)


def _train(request: TrainRequest, config: Any, folder: Path, args: Any, *, force: bool, resume: bool) -> int:
    from scanfield.fitting.parallel import joined
    from scanfield.kernels.backend import backend_for
    from scanfield.run import Run, choose_device

    device = choose_device(request.device)
    backend_for(device, request.backend)  # one that cannot run is refused before anything is written
    with joined(device) as workers:
        run = Run(folder, device, request.seed, resume, force, backend=request.backend, workers=workers)
        if not run.writes:  # of several processes one talks
            args.quiet, args.json, args.view = True, False, False
        return _trained(request, config, run, args)


def _trained(request: TrainRequest, config: Any, run: Run, args: Any) -> int:
    from scanfield.cli.fit import PRESET_NOTES, nothing_left_of
    from scanfield.cli.interrupt import stop_on_interrupt
    from scanfield.cli.progress import progress
    from scanfield.cli.request import read_run
    from scanfield.cli.watch import watched
    from scanfield.data.cohort import SPLITS, read_cohort
    from scanfield.tasks.model import FILE
    from scanfield.tasks.training import check_same_cohort, train

    folder, display = run.folder, progress(quiet=args.quiet)
    assert folder is not None
    run.observers = (display,) if run.writes else ()
    cohort = read_cohort(request.cohort, labels=None if request.labels is None else Path(request.labels))
    if run.resume:
        check_same_cohort(cohort, read_run(folder).get("cohort", []), str(folder))
    if not (args.quiet or args.json):
        people = [(len(cohort.part(split)), split, cohort.subjects(split)) for split in SPLITS]
        said = ", ".join(f"{n} {split} ({of} subject{'s' * (of != 1)})" for n, split, of in people if n)
        print(f"{request.method}\n  images    {said}", flush=True)
        note = PRESET_NOTES[request.preset]
        several = f" in {run.workers.count} processes" if run.workers.count > 1 else ""
        print(f"  settings  preset {request.preset}{note}; seed {run.seed}; {run.device}{several}", flush=True)
    new = run.writes and not folder.exists()
    watching = watched(run, view=args.view)
    with nothing_left_of(folder, new), watching, stop_on_interrupt(run.stop), display:
        model = train(
            cohort,
            request.method,
            config,
            run,
            preset=request.preset,
            licence=request.licence,
            request=asdict(request),
        )
    facts = {
        "folder": str(folder),
        "file": str(folder / FILE),
        "model": model.key,
        "bytes": model.size,
        "status": "interrupted" if run.stop.is_set() else "complete",
        "held_out": model.logs[-1].best_held_out if model.logs else None,
        "warnings": run.warnings,
        "notes": run.notes,
        "timings": run.timings,
    }
    if not run.writes:
        return 1 if run.stop.is_set() else 0
    if args.json:
        print(json.dumps(facts))
    elif not args.quiet:
        print(_text(folder, model, run))
    if run.stop.is_set():
        again = f"scanfield train --resume {shlex.quote(str(folder))}"
        print(f"stopped before the end; continue with: {again}", file=sys.stderr)
        return 1
    return 0


def _text(folder: Path, model: Model, run: Run) -> str:
    from scanfield.tasks.model import FILE

    said = remarks(run.warnings, run.notes)
    log = model.logs[-1] if model.logs else None
    lines = [*said, *([""] if said else []), f"{folder}/"]
    lines += [f"  {FILE}  the model {model.key}: {model.size} bytes of weights"]
    if log is not None and log.best_held_out is not None:
        lines += [f"  log.jsonl          the curves; held out {log.best_held_out:.4g} at best, at step {log.best_step}"]
    return "\n".join([*lines, "  run.json           settings, seeds, versions, checksums of the images"])


def _parser() -> Parser:
    parser = Parser(
        "scanfield train",
        "Trains a method on the images of many people. The model is one file, MODEL/model.safetensors; using it needs "
        "none of the images. A person's images belong to one split and an image is listed once; anything else is "
        "refused.",
        takes="METHOD --cohort COHORT.csv -o MODEL [options] [settings of the method]",
        examples=[
            "scanfield train coinpp --cohort cohort.csv -o brain_model",
            "scanfield compress new.nii.gz -o new.sfz --method coinpp --model brain_model --ratio 64",
        ],
    )
    parser.add_argument("method", metavar="METHOD", help="a method that is trained")
    parser.add_argument(
        "--cohort", metavar="COHORT.csv", required=True, help="table of images: columns path, subject, split, label"
    )
    parser.add_argument(
        "--labels",
        metavar="TABLE.csv",
        help="what the values of the label maps mean: columns value, name; value 0 is the background (default: the "
        "values found)",
    )
    parser.add_argument("-o", "--output", metavar="MODEL", required=True, help="folder for the model")
    parser.add_argument("--force", action="store_true", help="replace a run that is in the folder")
    parser.add_argument(
        "--licence", metavar="TEXT", default="not stated", help="licence of the images, kept in the model"
    )
    parser.add_argument(
        "--preset",
        type=one_of(*PRESETS),
        default="fast",
        metavar="tiny|fast|paper",
        help="starting point of the settings (default: fast)",
    )
    parser.add_argument("--config", metavar="C.json", help="settings that differ from the preset; flags go before it")
    add_how(parser)
    return parser
