"""Figures: scales, places, marks and bytes."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from scanfield.errors import InputError
from scanfield.report.curves import convergence_figure
from scanfield.report.pictures import (
    Panel,
    comparison_figure,
    encode,
    nice_length_mm,
    projections_figure,
    robust_limit,
)
from scanfield.report.record import Event, Projections
from scanfield.report.views import View, views

RNG = np.random.default_rng(0)


def _view(shape: tuple[int, int, int] = (20, 30, 1), spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> View:
    return views(shape, np.diag([*spacing, 1.0]))[0]


def _panels(count: int, errors: bool = True) -> list[Panel]:
    image = RNG.normal(size=(30, 20))
    return [Panel(f"image {k}", image + k, f"PSNR {k} dB", 0.1 * image if errors and k else None) for k in range(count)]


def _images(figure: Figure) -> list:
    return [axes.images[0] for axes in figure.axes if axes.images]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7, 9])
def test_all_images_share_one_grey_scale_and_all_errors_one_signed_scale(count: int) -> None:
    panels = _panels(count)
    figure = comparison_figure(
        panels, _view(), window=(-1.0, 2.0), unit="1/mm", error_limit=0.3, error_label="image − original"
    )
    scales = [(image.get_cmap().name, *image.get_clim()) for image in _images(figure)]
    assert scales.count(("gray", -1.0, 2.0)) == count
    assert scales.count(("RdBu_r", -0.3, 0.3)) == count - 1
    shown = [image.get_array() for image in _images(figure) if image.get_cmap().name == "gray"]
    for panel, array in zip(panels, shown, strict=True):
        np.testing.assert_array_equal(np.asarray(array), panel.image)


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_panels_keep_their_physical_aspect_and_do_not_overlap(count: int) -> None:
    figure = comparison_figure(_panels(count), _view(), window=(0, 1), unit="", error_limit=1.0)
    width, height = figure.get_size_inches()
    boxes = [image.axes.get_position() for image in _images(figure)]
    for box in boxes:
        # 20 columns of 2 mm across 30 rows of 1 mm
        assert box.width * width / (box.height * height) == pytest.approx(40 / 30)
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1
    for k, a in enumerate(boxes):
        for b in boxes[k + 1 :]:
            assert a.x1 <= b.x0 + 1e-9 or b.x1 <= a.x0 + 1e-9 or a.y1 <= b.y0 + 1e-9 or b.y1 <= a.y0 + 1e-9


def test_first_panel_carries_letters_and_a_scale_bar_of_true_length() -> None:
    figure = comparison_figure(_panels(2), _view(), window=(0, 1), unit="1/mm", error_limit=1.0)
    first = _images(figure)[0].axes
    texts = [text.get_text() for text in first.texts]
    assert {"R", "L", "A", "P", "10 mm"} <= set(texts)
    start, stop = first.lines[0].get_xdata()
    assert stop - start == 10.0  # axes are in mm: the image spans 0..40
    assert first.get_xlim() == (0, 40)


@pytest.mark.parametrize(("extent", "length"), [(40, 10), (300, 100), (61, 20), (6, 2), (0.3, 0.1), (14.9, 2)])
def test_nice_length(extent: float, length: float) -> None:
    assert nice_length_mm(extent) == pytest.approx(length)


def test_text_is_drawn_as_it_stands() -> None:
    panels = [Panel("$\\frac{", np.eye(4), "a_b$^", None), Panel("_x", np.eye(4))]
    figure = comparison_figure(panels, _view((4, 4, 1)), window=(0, 1), unit="$\\bad")
    assert encode(figure, "png").startswith(b"\x89PNG")


def test_bytes_are_the_same_for_the_same_figure_and_carry_the_resolution() -> None:
    def make() -> tuple[bytes, bytes]:
        panels = [Panel("a", np.arange(16.0).reshape(4, 4))]
        figure = comparison_figure(panels, _view((4, 4, 1)), window=(0, 15), unit="1/mm", width_mm=127.0)
        return encode(figure, "png", 100), encode(figure, "svg")

    png, svg = make()
    assert (png, svg) == make()
    assert imread(io.BytesIO(png)).shape[1] == 500  # 127 mm = 5 inches
    assert svg.lstrip().startswith(b"<?xml") and b"<script" not in svg


def test_bad_comparisons() -> None:
    view = _view((4, 4, 1))
    with pytest.raises(InputError, match="one shape"):
        comparison_figure([], view, window=(0, 1), unit="")
    with pytest.raises(InputError, match="one shape"):
        comparison_figure([Panel("a", np.eye(4)), Panel("b", np.eye(5))], view, window=(0, 1), unit="")
    with pytest.raises(InputError, match="low < high"):
        comparison_figure([Panel("a", np.eye(4))], view, window=(1, 1), unit="")
    with pytest.raises(InputError, match="positive limit"):
        comparison_figure([Panel("a", np.eye(4), "", np.eye(4))], view, window=(0, 1), unit="")


def test_robust_limit_ignores_outliers_and_is_never_zero() -> None:
    errors = np.concatenate([np.linspace(-1, 1, 1001), [1e6]])
    assert 0.9 < robust_limit([errors]) <= 1.0
    assert robust_limit([np.zeros(5), np.array([np.nan])]) == 1.0
    sparse = np.zeros(1000)
    sparse[0] = -3
    assert robust_limit([sparse]) == 3.0


def _scan(rows: int = 1) -> Projections:
    angles = np.array([90.0, 0.0, 45.0, 135.0])
    measured = RNG.uniform(1, 2, size=(4, rows, 7))
    predicted = measured + np.array([0.4, 0.1, 0.2, 0.3])[:, None, None]
    return Projections(measured, predicted, angles, (2,), "1", None)


def test_views_of_a_sinogram_stand_in_the_order_of_their_angle() -> None:
    scan = _scan(rows=3)
    figure = projections_figure(scan)
    measured, predicted, residual = (np.asarray(image.get_array()) for image in _images(figure)[:3])
    order = [1, 2, 0, 3]
    np.testing.assert_array_equal(measured, scan.measured[order, 1])
    np.testing.assert_array_equal(predicted, scan.predicted[order, 1])
    np.testing.assert_allclose(residual[:, 0], [0.1, 0.2, 0.4, 0.3])
    first = _images(figure)[0].axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["0", "45", "90", "135"]
    np.testing.assert_array_equal(first.lines[0].get_ydata(), [1])  # the held-out view's row
    assert first.get_xlabel() == "detector bin"
    fitted, held_out = next(axes for axes in figure.axes if axes.get_title(loc="left") == "RMS by view").lines
    np.testing.assert_allclose(fitted.get_xdata(), [0.1, 0.4, 0.3])
    np.testing.assert_allclose(held_out.get_xdata(), [0.2])


def test_detector_positions_in_mm_where_the_spacing_is_known() -> None:
    figure = projections_figure(dataclasses.replace(_scan(), column_spacing_mm=2.0, held_out=()))
    axes = _images(figure)[0].axes
    assert axes.get_xlabel() == "detector position (mm)"
    assert axes.get_xlim() == (-7.0, 7.0)


def test_equal_and_constant_projections_can_be_drawn() -> None:
    flat = np.zeros((1, 1, 3))
    encode(projections_figure(Projections(flat, flat, np.zeros(1), (), "1", None)), "png", 50)


def test_convergence_shows_every_stage_and_term() -> None:
    events = [Event("warm-up", k, 0.1 * k, {"data": 1 / k}, None) for k in range(1, 4)]
    events += [Event("fit", k, float(k), {"data": 1 / k, "_$tv": 0.0}, 2.0 - 0.1 * k) for k in range(1, 6)]
    figure = convergence_figure(events)
    encode(figure, "png", 60)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "warm-up" and "fit" in titles
    main = figure.axes[titles.index("fit")]
    assert main.get_yscale() == "log"
    np.testing.assert_allclose(main.lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    held_out = next(
        axes for axes in figure.axes if axes.lines and len(axes.lines[0].get_xdata()) == 5 and axes is not main
    )
    np.testing.assert_allclose(held_out.lines[0].get_ydata(), [1.9, 1.8, 1.7, 1.6, 1.5])
    assert held_out.lines[1].get_xdata()[0] == 5  # the circle at the minimum


def test_many_stages_share_one_pair_of_axes() -> None:
    events = [Event(f"slice-{s}", k, float(k), {"data": s + 1 / k}, 1 / k) for s in range(40) for k in range(1, 9)]
    figure = convergence_figure(events)
    assert len(figure.axes) == 2
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert len(curves) == 40
    np.testing.assert_allclose(curves[3].get_ydata(), 3 + 1 / np.arange(1, 9))
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "data"


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_losses_that_no_logarithm_can_show(value: float) -> None:
    events = [Event("fit", k, 0.0, {"data": value}, value) for k in (1, 2)]
    assert encode(convergence_figure(events), "png", 50).startswith(b"\x89PNG")


def test_long_logs_are_thinned_and_keep_their_end() -> None:
    events = [Event("fit", k, 0.01 * k, {"data": 1.0 + k}, None) for k in range(20_001)]
    line = convergence_figure(events).axes[0].lines[0]
    assert len(line.get_xdata()) < 2100
    assert line.get_xdata()[-1] == 20_000
