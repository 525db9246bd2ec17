"""What changed since the prior image: every image of a run with its difference to the prior below it.

run.json names the prior among the images of the run under `prior`. Nothing in the RUN folder is trusted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scanfield.errors import InputError
from scanfield.report import numbers
from scanfield.report.pictures import Panel, comparison_figure, robust_limit
from scanfield.report.record import RERUN, Picture, Record
from scanfield.report.views import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_RIVALS = 3  # that stand beside the method; all of them would repeat the images above


def prior_of(record: Record) -> Picture | None:
    """The prior image of a run; None where there was none.

    Raises:
        InputError: run.json names an image that the run does not have.
    """
    name = record.text("prior")
    if not name:
        return None
    found = next((picture for picture in record.pictures if picture.name == name), None)
    if found is None:
        raise InputError(f"run.json calls '{name}' the prior, but there is no such image", fix=RERUN)
    return found


def compared(record: Record, prior: Picture) -> list[Picture]:
    """What is shown beside the prior: the first reference, the method, and the rivals that show the reference best."""
    chosen = [*record.references[:1], *(p for p in record.pictures if p.kind == "method")]
    rivals = [p for p in record.pictures if p.kind == "baseline" and p is not prior]
    if record.references:
        key = f"psnr_db:{record.references[0].name}"
        scores = {row.name: row.values.get(key, -np.inf) for row in record.rows}
        rivals.sort(key=lambda picture: -scores.get(picture.name, -np.inf))
    return chosen + rivals[:MOST_RIVALS]


def change_figure(record: Record, prior: Picture, view: int, window: tuple[float, float]) -> tuple[Figure, float]:
    """The prior, then every image of `compared` above its difference to the prior; and the scale's limit.

    Args:
        view: which of the record's views.
        window: of the grey scale, in the images' unit.
    """
    shown = compared(record, prior)
    changes = [picture.cuts[view] - prior.cuts[view] for picture in shown]
    reference = record.references[:1]
    limit = robust_limit(changes[:1] if reference else changes)
    panels = [Panel(prior.label, prior.cuts[view])]
    for picture, change in zip(shown, changes, strict=True):
        panels.append(Panel(picture.label, picture.cuts[view], _score(record, picture), change))
    at: View = record.views[view]
    unit = record.text("unit") or "arbitrary unit"
    label = f"image − {prior.label}"
    figure = comparison_figure(
        panels, at, window=window, unit=unit, error_limit=limit, error_label=label, error_name="change"
    )
    return figure, limit


def _score(record: Record, picture: Picture) -> str:
    """'shows 78 % of the change', where the table says so."""
    values = next((row.values for row in record.rows if row.name == picture.name), {})
    found = [value for key, value in values.items() if key.partition(":")[0] == "recovered"]
    return f"shows {numbers.number(found[0], 0)} % of the change" if found else ""
