"""The section about what changed since the prior."""

import json

import pytest

from scanfield.errors import InputError
from scanfield.report.build import build_report
from scanfield.report.prior import change_figure, compared, prior_of
from scanfield.report.record import read_record


def with_prior(folder, name="fbp"):
    facts = json.loads((folder / "run.json").read_text())
    for row in facts["table"]["rows"]:
        row["values"]["recovered:original"] = {"scope": 78.4, "tv": 60.2}.get(row["name"], 0.0)
    (folder / "run.json").write_text(json.dumps(facts | {"prior": name}))
    return folder


def test_the_page_has_a_figure_of_the_change(make_run):
    folder = with_prior(make_run())
    page = build_report(folder).read_text()
    assert "Change since the prior" in page and "what changed since, image − FBP" in page
    assert (folder / "figures" / "change-axial.png").is_file() and (folder / "figures" / "change-axial.svg").is_file()
    assert "shows 78 % of the change" in (folder / "figures" / "change-axial.svg").read_text()


def test_the_change_is_the_image_minus_the_prior(make_run):
    record = read_record(with_prior(make_run()))
    prior = prior_of(record)
    shown = compared(record, prior)
    assert [picture.name for picture in shown] == ["original", "scope", "tv"]
    figure, limit = change_figure(record, prior, 0, (0.0, 0.03))
    maps = [
        axes.images[0].get_array() for axes in figure.axes if axes.images and axes.images[0].get_cmap().name != "gray"
    ]
    assert len(maps) == 3
    assert float(abs(maps[1] - (shown[1].cuts[0] - prior.cuts[0])).max()) == 0.0
    assert 0 < limit <= float(abs(maps[0]).max())


def test_without_a_prior_there_is_no_section(make_run):
    folder = make_run()
    assert "Change since the prior" not in build_report(folder).read_text()
    assert prior_of(read_record(folder)) is None


def test_a_prior_that_is_no_image_of_the_run_is_named(make_run):
    with pytest.raises(InputError, match="calls 'gone' the prior"):
        build_report(with_prior(make_run(), "gone"))
