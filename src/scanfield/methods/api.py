"""The file system is the registry: a method is a module with a card beside it. No torch in here.

`discover()` reads the cards of this package and of every module named in the entry-point group `scanfield.methods`;
`load(name)` imports one method. A method module defines

    Config                                   frozen dataclass; Config() is the published setting,
                                             Config.fast() minutes and Config.tiny() seconds on a CPU
    build(config, spec) -> Module            the untrained field
    fit(config, data, run, *, held_out=None, prior=None) -> Reconstruction
    render(result, grid) -> Tensor           the method's image on any grid, (n0, n1, n2[, c])
    predict(result, data) -> Tensor          what the result says the measurements (or voxels) of `data` should be

A method whose result is a set of fields also defines the first of these (an ensemble of any method needs neither)

    samples(result) -> Iterator[Module]      equally likely fields, each to stand in the place of `result.field`; the
                                             same at every call. `render` and `predict` are then asked about one field
    predictions(results, data) -> Iterator[Tensor]   optional: `predict` for several fields that share work

and one that takes images

    supervision(config) -> str               'values', 'gradient', 'laplacian' or 'surface': what is fitted
    surface_mesh(result) -> Mesh             the surface, if it fits one

A method whose card says `takes_prior = true` gets as `prior` an earlier image of the object where the user gave one: a
`Scan` in the unit and on the grid of its result, with a mask where it covers only a part; None otherwise. The prior is
in the table and its rivals use it, too (`tasks.priors`, `baselines.ct.with_prior`).

A method for registration takes a pair of images, and instead of `render` and `predict` it defines

    transform(result) -> Module              phi: points of the fixed image -> the moving image, (*n, 3) mm
    similarity(config) -> str                optional, 'ncc' (default) or 'mi': what its rivals maximise
    inverse(result) -> Module | None         optional: phi's inverse, where the result has its own

A method for stacks of slices also defines

    slices(result) -> SliceState             poses, scales and weights of the fitted slices
    mask(result, grid) -> Tensor             where there are slices
    deviation(result, grid) -> Tensor        the standard deviation of the volume

A method for CT may also define

    prepare(config, data, run) -> data       the measurement with what the method and its rivals should know of it
                                             (`metal`), from the views to fit alone
    energy_curves(result, points)            energies (e,) in keV, and attenuation (n, e) in 1/mm at world points

A method for k-space takes a `KSpace` (`data.rawmri`) whose acquisition says when every view was taken and to which
frame it belongs (`acquisition.when`, `.frame_of_view`); held-out views, or all views of some frames, are missing from
it. `spec` is `tasks.series.series_spec(...)`: the volume's box with an axis 't' of time or phase. `render` gives the
magnitude at the middle of the axis, `predict` complex k-space (views, coils, samples) in the data's unit. It also
defines

    series(result, grid, moments) -> Tensor  complex images (moments, n0, n1, n2) at any places on the axis 't'

A method for compression takes an image; its image is its field, with weights as they are in the file (rounded to steps
of `codec.quantise`, within the budget). It also defines

    Config.budget_bytes: int | None          bytes of the whole file; the task sets it
    shared_parts(config) -> int              weights whose names end in so many equal parts share a step

A method that learns from many images also defines

    train(config, cohort, run) -> Model      a `tasks.model.Model` from a `data.cohort.Cohort`

What its card accepts ('image', 'labelled-image', 'mask-sequence') decides what the cohort is checked for before.
Its `fit` gets the model as `prior`, with a configuration that starts from the model's own. Weights of the field that
have the name of one of the model's tensors are left out of `.sfz` files; reading them needs the model. `Config.tiny()`
trains in seconds on `COHORTS` of `tests/conformance/data.py`.

A method for segmentation fits no single image: it defines `train` and, in place of `build`, `fit`, `render`, `predict`,

    classifier(model, image, device) -> Callable   world points (n, 3) mm on `device` -> logits (n, classes), in the
                                             order of the label table `model.facts['labels']`, without gradients

A method for synthesis learns from sequences of masks and fits no single scan either: beside `train` it defines

    codes(model) -> Tensor                   (n, k), the codes of the training sequences
    draw(model, count, generator, *, spread) -> Tensor   (count, k) new codes, `spread` times as spread as those
    shape(model, code, device) -> Module     signed distance in mm, negative inside, (*n, 4) -> (*n, 1), of points
                                             (x, y, z, t) in mm and s; the sequence is centred at 0 and begins at t = 0
    canvas(model) -> (Grid, list[float])     voxels and moments that suit what it was trained on

A method for doses takes a `Dose`; `Config` has `bits_per_voxel` and `steps`. It also defines

    dose(result) -> Module                   the dose at world points, (*n, 1) Gy, differentiable
    rungs(result) -> dict[str, int]          the steps with which its weights are written (`codec.quantise`)
    candidates(config) -> list[dict]         settings that compete for the best architecture at a rate
"""

from __future__ import annotations

import importlib
import importlib.util
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from scanfield.errors import InputError, ScanfieldError, nearest

TASKS = ("reconstruction", "segmentation", "registration", "dose", "compression", "synthesis")
_REQUIRED = {
    "name": str,
    "label": str,
    "title": str,
    "authors": str,
    "year": int,
    "venue": str,
    "task": str,
    "accepts": list,
}
_REQUIRED |= {"summary": str, "choose_when": str, "choose_not_when": str, "bibtex": str}


@dataclass(frozen=True)
class Card:
    """What a method is, from the TOML front matter of its card; `text` is the Markdown below it.

    `takes_prior`: whether `fit` makes use of a prior image, a `Scan` in the unit and on the grid of the result.
    """

    name: str
    label: str
    title: str
    authors: str
    year: int
    venue: str
    task: str
    accepts: tuple[str, ...]
    summary: str
    choose_when: str
    choose_not_when: str
    bibtex: str
    text: str
    module: str
    doi: str = ""
    arxiv: str = ""
    url: str = ""
    takes_prior: bool = False

    @property
    def link(self) -> str:
        if self.doi:
            return f"https://doi.org/{self.doi}"
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url

    @property
    def citation(self) -> str:
        return f"{self.authors}. {self.title}. {self.venue}, {self.year}."


def read_card(path: Path, module: str) -> Card:
    """Parses a card: TOML between two lines `+++`, then Markdown.

    Raises:
        ScanfieldError: the card is malformed; names the key.
    """
    text = path.read_text(encoding="utf-8")
    parts = text.split("+++\n", 2)
    if len(parts) != 3 or parts[0].strip():
        raise ScanfieldError(f"{path}: a card starts with TOML between two lines '+++'")
    try:
        facts: dict[str, Any] = tomllib.loads(parts[1])
    except tomllib.TOMLDecodeError as error:
        raise ScanfieldError(f"{path}: {error}") from None
    for key, kind in _REQUIRED.items():
        if not isinstance(facts.get(key), kind):
            raise ScanfieldError(f"{path}: the card needs '{key}' ({kind.__name__})")
    if not all(isinstance(kind, str) for kind in facts["accepts"]):
        raise ScanfieldError(f"{path}: the card's 'accepts' must be a list of strings")
    unknown = set(facts) - set(_REQUIRED) - {"doi", "arxiv", "url", "takes_prior"}
    if unknown:
        raise ScanfieldError(f"{path}: unknown card keys {sorted(unknown)}")
    if not isinstance(facts.get("takes_prior", False), bool):
        raise ScanfieldError(f"{path}: the card's 'takes_prior' must be true or false")
    if facts["task"] not in TASKS:
        raise ScanfieldError(f"{path}: task must be one of {', '.join(TASKS)}")
    if facts["name"] != path.stem:
        raise ScanfieldError(f"{path}: the card's name '{facts['name']}' differs from its file name")
    return Card(**{**facts, "accepts": tuple(facts["accepts"])}, text=parts[2].strip(), module=module)


@cache
def discover() -> dict[str, Card]:
    """All methods by name: those of this package, then those of installed packages. Imports no method."""
    cards: dict[str, Card] = {}
    here = Path(__file__).parent
    for path in sorted(here.glob("*/*.md")):
        module = f"{__package__}.{path.parent.name}.{path.stem}"
        cards[path.stem] = read_card(path, module)
    for point in entry_points(group="scanfield.methods"):
        card = read_card(_outside_card(point), point.module)
        if card.name in cards:
            raise ScanfieldError(f"two methods are called '{card.name}': {cards[card.name].module} and {point.module}")
        cards[card.name] = card
    return cards


def _outside_card(point: EntryPoint) -> Path:
    """The card beside the module an entry point names; imports the module's package, not the module."""
    try:
        found = importlib.util.find_spec(point.module)
    except ImportError as error:
        raise ScanfieldError(f"the entry point '{point.name}' = '{point.value}' cannot be imported: {error}") from None
    if found is None or found.origin is None:
        raise ScanfieldError(f"the entry point '{point.name}' names a module that does not exist: {point.module}")
    path = Path(found.origin).with_suffix(".md")
    if not path.is_file():
        raise ScanfieldError(f"the method '{point.name}' has no card: {path} does not exist")
    return path


def card(name: str) -> Card:
    """The card of one method.

    Raises:
        InputError: unknown name (the nearest is named).
    """
    cards = discover()
    if name not in cards:
        raise InputError(f"unknown method '{name}'{nearest(name, cards)}", fix="`scanfield list` shows all methods")
    return cards[name]


def load(name: str) -> Any:
    """Imports a method's module (see `scanfield.tasks.result.Method` for what it defines)."""
    return importlib.import_module(card(name).module)


def check_accepts(name: str, kind: str) -> None:
    """Raises `InputError` if the method does not take this kind of data, naming those that do."""
    if kind in card(name).accepts:
        return
    others = [c.name for c in discover().values() if kind in c.accepts]
    raise InputError(
        f"method '{name}' does not take data of kind '{kind}'; it takes {', '.join(card(name).accepts)}",
        fix=f"methods for '{kind}': {', '.join(others) or 'none yet'}",
    )


def check_takes_prior(name: str) -> None:
    """Raises `InputError` if the method makes no use of a prior image, naming those that do."""
    if card(name).takes_prior:
        return
    others = [c.name for c in discover().values() if c.takes_prior]
    raise InputError(
        f"method '{name}' takes no prior image", fix=f"leave it out; methods that take one: {', '.join(others)}"
    )
