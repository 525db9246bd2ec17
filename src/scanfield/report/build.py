"""A RUN folder becomes one self-contained page, report.html, and the same figures as files.

The page needs no script, no network and no other file: pictures are data URIs, the style stands inside. Everything that
comes from the RUN folder is escaped, and a content security policy forbids whatever would still slip through.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.report import curves, numbers, pictures, style
from scanfield.report.citation import one_line
from scanfield.report.deformation import deformation_figure
from scanfield.report.dose import gamma_figure, histogram_figure, read_dose_record
from scanfield.report.kspace import kspace_plates
from scanfield.report.plate import Plate
from scanfield.report.posterior import posterior_plates
from scanfield.report.prior import change_figure, prior_of
from scanfield.report.record import Column, Picture, Projections, Record, read_record
from scanfield.report.segmentation import segmentation_plates
from scanfield.report.snapshot import usual_window
from scanfield.report.spectral import spectral_plates
from scanfield.report.stacks import motion_figure, read_slices, slices_figure
from scanfield.report.synthesis import synthesis_plates

PAGE_BYTES = 4_000_000  # of pictures in the page; base64 adds a third
COARSEST_DPI = 80
KIND_LABELS = {"method": "method", "read-out": "read-out of the field", "baseline": "baseline"}
KIND_LABELS |= {"reference": "", "class": "class"}


def build_report(run_folder: Path) -> Path:
    """Writes report.html and figures/ into a RUN folder, from what is in it and nothing else.

    Pieces that the run does not have (references, measurements, a log, a table) are left out of the page. Files appear
    only when complete, the page last.

    Returns:
        The path of report.html.

    Raises:
        InputError: the folder is no RUN folder, half-written, of a newer schema, or cannot be written.
    """
    folder = Path(run_folder)
    record = read_record(folder)
    try:
        (folder / "figures").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the report cannot be written: {error.strerror}",
            where=str(folder),
            fix="copy the RUN folder to where you may write",
        ) from None
    window = _window(record) if record.pictures else (0.0, 1.0)
    sections = {
        "Segmentation": list(segmentation_plates(folder, record.facts, window)),
        "Shapes": list(synthesis_plates(folder, record.facts)),
        "Images": list(_image_plates(record)),
        "Change since the prior": list(_prior_plates(record)),
        "Uncertainty": list(posterior_plates(folder, record, window)),
        "Deformation": list(_deformation_plates(record)),
        "Dose": list(_dose_plates(folder, record)),
        "Metal and energies": list(spectral_plates(folder, record, window)),
        "Slices": list(_slice_plates(folder)),
        "Series and k-space": list(kspace_plates(folder, record, window)),
        "Measured and predicted": [] if record.projections is None else [_projection_plate(record.projections)],
        "Convergence": _convergence_plates(record),
    }
    plates = [plate for section in sections.values() for plate in section]
    finest = {plate.name: pictures.encode(plate.figure, "png") for plate in plates}
    page = _page(record, sections, _embedded(plates, finest))
    for plate in plates:
        if plate.animation:
            with write_atomically(folder / "figures" / f"{plate.name}.gif") as temporary:
                temporary.write_bytes(plate.animation)
        with write_atomically(folder / "figures" / f"{plate.name}.png") as temporary:
            temporary.write_bytes(finest[plate.name])
        with write_atomically(folder / "figures" / f"{plate.name}.svg") as temporary:
            temporary.write_bytes(pictures.encode(plate.figure, "svg"))
    with write_atomically(folder / "report.html") as temporary:
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
    return folder / "report.html"


def _embedded(plates: list[Plate], finest: dict[str, bytes]) -> dict[str, str]:
    """Data URIs of all figures, at the finest resolution that keeps the page below `PAGE_BYTES`."""
    pngs, dpi = finest, style.DPI
    while (size := sum(len(png) for png in pngs.values())) > PAGE_BYTES and dpi > COARSEST_DPI:
        dpi = max(COARSEST_DPI, int(0.97 * dpi * math.sqrt(PAGE_BYTES / size)))
        pngs = {plate.name: pictures.encode(plate.figure, "png", dpi) for plate in plates}
    uris = {name: f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}" for name, png in pngs.items()}
    moving = {plate.name: base64.b64encode(plate.animation).decode("ascii") for plate in plates if plate.animation}
    return uris | {name: f"data:image/gif;base64,{gif}" for name, gif in moving.items()}


def _image_plates(record: Record) -> Iterator[Plate]:
    """All images with errors against the first reference, a figure a view; for the first view also errors against
    every other reference."""
    if record.grid is None or record.facts.get("segmentation") is not None:
        return  # the image of a segmentation is shown with its outlines
    unit = record.text("unit") or "arbitrary unit"
    window, hu = _window(record), _hu_window(record)
    results = [picture for picture in record.pictures if picture.kind != "reference"]
    errors = [r.cuts[v] - ref.cuts[v] for ref in record.references for r in results for v in range(len(record.views))]
    limit = pictures.robust_limit(errors) if errors else 0.0
    names = ", ".join(picture.label for picture in record.pictures)
    for v, view in enumerate(record.views):
        count = record.grid.shape[view.axis]
        where = f"{view.name} plane" + (f" {view.index + 1} of {count}" if count > 1 else "")
        sides = f"left {view.left}, right {view.right}, top {view.top}, bottom {view.bottom}"
        first = record.references[0] if results and record.references else None
        label = f"image − {first.label}" if first else ""
        panels = [
            pictures.Panel(
                _marked(record, picture),
                picture.cuts[v],
                _scores(record, picture),
                None if first is None or picture is first else picture.cuts[v] - first.cuts[v],
            )
            for picture in record.pictures
        ]
        figure = pictures.comparison_figure(
            panels, view, window=window, unit=unit, error_limit=limit, error_label=label
        )
        caption = f"{where.capitalize()}, all on one grey scale from {window[0]:.4g} to {window[1]:.4g} {unit}{hu}. "
        if first:
            caption += f"Below every image its error map, {_error_caption(label, limit, unit)} "
        caption += f"Radiological convention: {sides}."
        yield Plate(f"images-{view.plane}", figure, f"{where.capitalize()} of {names}, side by side.", caption)
        others = record.references[1:] if results and v == 0 else ()
        for number, reference in enumerate(others, start=2):
            label = f"image − {reference.label}"
            panels = [
                pictures.Panel(_marked(record, p), p.cuts[v] - reference.cuts[v], _scores(record, p)) for p in results
            ]
            figure = pictures.comparison_figure(
                panels, view, window=(-limit, limit), unit=f"{label} ({unit})", colour_map=style.ERROR_MAP
            )
            caption = (
                f"{where.capitalize()}, error maps against another reference: {_error_caption(label, limit, unit)}"
            )
            alt = f"Error maps against {reference.label}: {', '.join(p.label for p in results)}."
            yield Plate(f"errors-{view.plane}-{number}", figure, alt, caption)


def _error_caption(label: str, limit: float, unit: str) -> str:
    return (
        f"{label}, from −{limit:.3g} (blue: too low) to +{limit:.3g} {unit} (red: too high); "
        f"{100 - style.WITHIN_PERCENT} % of the errors are larger and take the end colours."
    )


def _marked(record: Record, picture: Picture) -> str:
    """The label, with the letter that captions use for a reference when there are several."""
    letters = _reference_letters(record)
    return f"{letters[picture.name]}: {picture.label}" if picture.name in letters else picture.label


def _reference_letters(record: Record) -> dict[str, str]:
    names = [picture.name for picture in record.references]
    return {} if len(names) < 2 else {name: chr(ord("A") + k) for k, name in enumerate(names)}


def _scores(record: Record, picture: Picture) -> str:
    """'PSNR 31.20 dB', or 'PSNR 31.20 (A), 33.71 (B) dB' against several references; 'TRE 1.21 mm' or 'NCC 0.970'."""
    own = picture.name if record.deformation is None or picture.kind != "method" else record.text("method")
    values = next((row.values for row in record.rows if row.name == own), {})
    if "tre_mm" in values:
        return f"TRE {numbers.number(values['tre_mm'], 2)} mm"
    if "ncc" in values:
        return f"NCC {numbers.number(values['ncc'], 3)}"
    letters = _reference_letters(record)
    found = []
    for reference in record.references:
        value = values.get(f"psnr_db:{reference.name}")
        if value is not None:
            mark = f" ({letters[reference.name]})" if letters else ""
            found.append(numbers.number(value, 2) + mark)
    return f"PSNR {', '.join(found)} dB" if found else ""


def _window(record: Record) -> tuple[float, float]:
    """The grey scale that the run asks for, or the 1st to 99.5th percentile of the first image."""
    display = record.facts.get("display")
    wanted = display.get("window") if isinstance(display, dict) else None
    if isinstance(wanted, list) and len(wanted) == 2 and all(isinstance(v, int | float) for v in wanted):
        low, high = float(wanted[0]), float(wanted[1])
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return low, high
    values = np.concatenate([cut[np.isfinite(cut)] for cut in record.pictures[0].cuts])
    low, high = usual_window(values) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _hu_window(record: Record) -> str:
    """' (-200 to 200 HU with ...)' where the images are attenuation and the run states that of water."""
    facts = record.facts.get("facts")
    water = facts.get("mu_water_per_mm") if isinstance(facts, dict) else None
    if record.text("unit") != "1/mm" or not isinstance(water, int | float) or not 0 < water < math.inf:
        return ""
    low, high = (numbers.number(1000 * (value - water) / water, 0) for value in _window(record))
    return f" ({low} to {high} HU, with μ of water {water:.4g} 1/mm)"


def _prior_plates(record: Record) -> Iterator[Plate]:
    """The prior, the result and the change between them, a figure a view."""
    prior = prior_of(record)
    for v, view in enumerate(record.views if prior is not None else ()):
        assert prior is not None
        figure, limit = change_figure(record, prior, v, _window(record))
        unit = record.text("unit") or "arbitrary unit"
        caption = (
            f"{view.name.capitalize()} plane: the prior, and below every other image what changed since, image − "
            f"{prior.label}, from −{limit:.3g} (blue: less now) to +{limit:.3g} {unit} (red: more now)."
        )
        yield Plate(f"change-{view.plane}", figure, "Prior, results, and differences to the prior.", caption)


def _deformation_plates(record: Record) -> Iterator[Plate]:
    """Checkerboards, determinants and displacements of a registration, a figure a view."""
    deformation = record.deformation
    if deformation is None:
        return
    named = {picture.name: picture for picture in record.pictures}
    for v, view in enumerate(record.views):
        fixed, before, after = (
            named[name].cuts[v] for name in (deformation.fixed, deformation.before, deformation.after)
        )
        determinant, length = deformation.determinants[v], np.linalg.norm(deformation.displacements[v], axis=-1)
        figure = deformation_figure(deformation, v, view, (fixed, before, after))
        caption = (
            f"{view.name.capitalize()} plane. Above, checkerboards of the fixed image and the moving one, before and "
            "after registration, each image on its own grey scale. Below left, the determinant of the map's Jacobian "
            f"(here {determinant.min():.3g} to {determinant.max():.3g}; above 1 the moving image is larger there, "
            "black where the map folds), and lines along which a coordinate of the moving image is constant. Below "
            "right, the way from each point to its place in the moving image in true length (here up to "
            f"{length.max():.3g} mm), coloured by its length in space."
        )
        alt = "Checkerboards before and after, determinant map, displacement arrows."
        yield Plate(f"deformation-{view.plane}", figure, alt, caption)


def _slice_plates(folder: Path) -> Iterator[Plate]:
    """Slices before and after, motion and outliers of a reconstruction from stacks."""
    slices = read_slices(folder)
    if slices is None:
        return
    if slices.shown:
        caption = "The least sound slices, then usual ones (stack:slice, from 0): as measured, and as the volume "
        caption += "predicts them at their first and at their fitted poses."
        yield Plate("slices", slices_figure(slices), "Slices as measured and as predicted.", caption)
    caption = f"How far each of {len(slices.slices)} slices was turned and moved from where it began, by stack; and "
    caption += "the slices that count least, with their correlation with what the result predicts."
    yield Plate("motion", motion_figure(slices), "Motion of the slices, and a ranking of outliers.", caption)


def _dose_plates(folder: Path, record: Record) -> Iterator[Plate]:
    """Gamma map and dose-volume histograms of a stored dose."""
    dose = read_dose_record(folder)
    if dose is None:
        return
    caption = "Gamma of the decoded dose against the planned one (3 %/3 mm, global) through the middle of the volume: "
    caption += "above 1 a point does not pass; 0 also where it was not judged."
    yield Plate("gamma", gamma_figure(dose), "Gamma map.", caption)
    if dose.curves:
        caption = "Cumulative dose-volume histograms: solid, the planned dose at its voxels; dotted, the decoded dose "
        caption += "at its voxels; dashed, the continuous dose at points between them."
        method = record.text("method")
        figure = histogram_figure(dose, ("plan", method, f"{method}, sub-voxel"))
        yield Plate("dvh", figure, "Dose-volume histograms of every structure.", caption)


def _projection_plate(scan: Projections) -> Plate:
    views, rows, bins = scan.measured.shape
    caption = f"Sinogram of {views} views × {bins} detector bins"
    caption += f" (detector row {rows // 2 + 1} of {rows})" if rows > 1 else ""
    caption += ": what was measured, what the result predicts, and the difference; measured and predicted on one scale."
    if scan.held_out:
        angles = ", ".join(f"{scan.angles_deg[v]:.4g}°" for v in scan.held_out)
        caption += f" Orange marks: the {len(scan.held_out)} views that were held out of the fit ({angles})."
    return Plate("measurements", pictures.projections_figure(scan), "Measured and predicted sinogram.", caption)


def _convergence_plates(record: Record) -> list[Plate]:
    if not record.events:
        return []
    held_out = [event for event in record.events if event.held_out is not None]
    figure = curves.convergence_figure(record.events)
    last = {event.stage: event for event in record.events}
    if len(last) <= curves.MAX_STAGES:
        parts = "; ".join(f"{stage}: {event.step} steps in {_duration(event.seconds)}" for stage, event in last.items())
    else:
        steps, seconds = sum(event.step for event in last.values()), sum(event.seconds for event in last.values())
        parts = f"{len(last)} stages: {steps} steps in {_duration(seconds)} together"
    caption = f"Convergence ({parts}). Loss terms before weighting."
    if held_out:
        unseen = "the residual on measurements held out of the fit, in their unit"
        if record.deformation is not None:
            unseen = (
                "how unlike the images are at voxels held out of the fit (the first loss term, images not smoothed)"
            )
        caption += f" Below: {unseen}"
        best = min(held_out, key=lambda event: event.held_out or 0.0)
        circle = f"; the circle marks its minimum (step {best.step}, {best.held_out:.3g})" if len(last) == 1 else ""
        caption += circle + "."
    return [Plate("convergence", figure, "Loss terms and held-out residual against the step.", caption)]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _page(record: Record, sections: dict[str, list[Plate]], uris: dict[str, str]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    versions = record.facts.get("versions")
    citation = record.facts.get("citation")
    return template.render(
        record=record,
        method=record.method_label,
        command=str(record.facts.get("command") or ""),
        citation=one_line(str(citation)) if citation else "",
        bibtex=str(record.facts.get("bibtex") or citation or "").strip(),
        date=_date(record.text("created")),
        facts=_scan_facts(record),
        interrupted=record.text("status") == "interrupted",
        program="register" if record.text("task") == "registration" else "reconstruct",
        steps=record.events[-1].step if record.events else None,
        sections=sections,
        uris=uris,
        header=_table_header(record),
        cells=numbers.cells(record.columns, record.rows),
        arrows=numbers.ARROWS,
        metric=numbers.metric,
        kinds=KIND_LABELS,
        findings=numbers.findings(record),
        column_notes=_column_notes(record),
        config=list(_flat(record.facts.get("config"))),
        versions=versions if isinstance(versions, dict) else {},
        timings=_timings(record),
        inputs=[entry for entry in record.facts.get("inputs") or [] if isinstance(entry, dict)],
    )


def _scan_facts(record: Record) -> list[tuple[str, str]]:
    """Name and value of what was scanned and computed, for the head of the page."""
    facts = []
    if record.grid is not None:
        size = " × ".join(str(n) for n in record.grid.shape)
        spacing = " × ".join(f"{s:.4g}" for s in record.grid.spacing_mm)
        facts += [("Image", f"{size} voxels of {spacing} mm")]
    if record.projections is not None:
        views, rows, bins = record.projections.measured.shape
        angles = record.projections.angles_deg
        held = len(record.projections.held_out)
        detector = f"{bins} detector bins" if rows == 1 else f"{rows} × {bins} detector pixels"
        facts.append(("Measurement", f"{views} views × {detector}, {angles.min():.4g}° to {angles.max():.4g}°"))
        facts.append(("Held out of the fit", f"{held} views" if held else "none"))
    given = record.facts.get("facts")
    if isinstance(given, dict):
        facts += [(str(k).replace("_", " "), _plain(v)) for k, v in given.items() if k != "mu_water_per_mm"]
    for name, key in (("Preset", "preset"), ("Seed", "seed"), ("Device", "device")):
        facts += [(name, record.text(key))] if record.text(key) else []
    return facts


def _table_header(record: Record) -> list[tuple[str, list[Column]]]:
    """Columns in groups of one reference, in their order; '' heads columns that are not about a reference."""
    groups: list[tuple[str, list[Column]]] = []
    for column in record.columns:
        picture = numbers.reference(record, column)
        heading = "" if picture is None else f"against the {picture.label}"
        if groups and heading and groups[-1][0] == heading:
            groups[-1][1].append(column)
        else:
            groups.append((heading, [column]))
    return groups


def _column_notes(record: Record) -> list[tuple[str, str]]:
    """Notes of the table's columns, columns of the same note together."""
    notes: dict[str, list[str]] = {}
    for column in record.columns:
        if column.note:
            notes.setdefault(column.note, []).append(column.label)
    return [(", ".join(labels), note) for note, labels in notes.items()]


def _timings(record: Record) -> list[tuple[str, str]]:
    timings = record.facts.get("timings")
    items = timings.items() if isinstance(timings, dict) else ()
    return [(str(name), _duration(float(value))) for name, value in items if isinstance(value, int | float)]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested objects as ('grid.levels', '8')."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _date(created: str) -> str:
    """'22 November 2026, 17:32 UTC' from ISO time; other text as it stands."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = f" {time.tzname()}" if time.tzinfo else ""
    return f"{time.day} {time:%B %Y, %H:%M}{zone}"
