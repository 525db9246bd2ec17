"""What a task leaves its caller: the result, images and rivals on one grid, the numbers, and the finished folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanfield.report.build import build_report
from scanfield.report.notebook import images_html, widget, with_table
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.folder import Picture, usual_range, write_pictures, write_record
from scanfield.tasks.result import Reconstruction
from scanfield.tasks.table import Table
from scanfield.tasks.uncertainty import Uncertainty, said, write_uncertainty


@dataclass(eq=False)
class Outcome:
    """What a task returns: the result, the images on one grid, the numbers, the folder if there is one, and the
    uncertainty of the method's image if its result is a set of fields."""

    result: Reconstruction
    grid: Grid
    pictures: list[Picture]
    table: Table
    folder: Path | None
    uncertainty: Uncertainty | None = None

    def _repr_html_(self) -> str:
        """In a notebook: the middle slice of every image, and the numbers."""
        named = [(picture.label, picture.values.numpy()) for picture in self.pictures]
        return with_table(images_html(named, self.grid), self.table.to_text())

    def view(self) -> Any:
        """A widget that shows the images in a notebook, the method's first.

        Raises:
            MissingExtra: ipyniivue is not installed.
            InputError: the run kept no folder.
        """
        order = sorted(self.pictures, key=lambda picture: picture.kind != "method")
        # One at a time is seen; the others lie above it, transparent until their opacity is raised.
        return widget(
            self.folder,
            [(f"{picture.name}.nii.gz", {"opacity": 0.0 if number else 1.0}) for number, picture in enumerate(order)],
        )


def finish(
    run: Run,
    facts: dict[str, Any],
    outcome: Outcome,
    *,
    measurements: dict[str, Any] | None = None,
    window: tuple[float, float] | None = None,
    unit: str | None = None,
    deformation: dict[str, Any] | None = None,
) -> None:
    """Writes the field, the images, run.json and the report into the run's folder.

    Args:
        facts: what `folder.facts_of` knew before the fit.
        measurements: where measured and predicted data lie, or None.
        window: grey scale of the report; None takes the range of the last image without its outermost percent.
        unit: of the images, where it is not the field's own.
        deformation: of a registration: which files hold the map and which images it aligned.
    """
    assert run.folder is not None
    unit = outcome.result.spec.unit if unit is None else unit
    outcome.result.save(run.folder / "field.safetensors")
    posterior = None
    if outcome.uncertainty is not None:
        posterior = write_uncertainty(run.folder, outcome.uncertainty, outcome.grid, unit, run)
        for sentence in said(outcome.uncertainty):
            run.note(sentence)
    facts = facts | {
        "unit": unit,
        "timings": run.timings,
        "warnings": run.warnings,
        "notes": run.notes,
        "status": "interrupted" if run.stop.is_set() else "complete",
        "table": outcome.table.to_json(),
        "images": write_pictures(run.folder, outcome.pictures, outcome.grid, unit),
        "measurements": measurements,
        "deformation": deformation,
        "posterior": posterior,
        "display": {"window": list(window or usual_range(outcome.pictures[-1].values))},
    }
    write_record(run.folder, facts)
    build_report(run.folder)
