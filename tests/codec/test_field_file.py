"""A field in a file: within its budget, read without anything else, at any resolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.codec.container import Section, read_container, read_head, write_container
from scanfield.codec.field_file import rate_report, read_field, write_field
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.methods.reconstruction import siren
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction

TURN = np.array([[0.8, -0.6, 0.0, 20.0], [0.6, 0.8, 0.0, -7.0], [0.0, 0.0, -3.0, 100.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((24, 20, 6), TURN)


@pytest.fixture(scope="module")
def result() -> Reconstruction:
    x = GRID.points()
    values = 100 * torch.sin(x[:, 0] / 6) * torch.cos(x[:, 1] / 9) + x[:, 2]
    config = replace(siren.Config.tiny(), steps=150, width=24, first_omega=8.0)
    return siren.fit(config, Scan(values.reshape(GRID.shape), GRID, "HU"), Run(seed=0))


def test_a_file_is_read_without_the_image(result, tmp_path):
    report = write_field(tmp_path / "a.sfz", result, bits=12, facts={"dtype": "int16"})
    back = read_field(tmp_path / "a.sfz")
    assert back.method == "siren" and back.config == result.config and back.provenance == {"dtype": "int16"}
    assert back.spec.grid.same_as(GRID) and back.spec.unit == "HU" and back.spec.scale == result.spec.scale
    span = float(result.render().max() - result.render().min())
    assert (back.render() - result.render()).abs().max() < 0.02 * span
    other = GRID.resampled(2.3)
    assert (back.render(other) - result.render(other)).abs().max() < 0.02 * span
    assert report.total == (tmp_path / "a.sfz").stat().st_size
    assert dict(report.parts).keys() == {"header", "weights"}
    assert report.bits_per_voxel == pytest.approx(8 * report.total / GRID.size)


@pytest.mark.parametrize("budget", [1400, 1200, 900])
def test_budgets_are_kept_and_used(result, tmp_path, budget):
    report = write_field(tmp_path / "a.sfz", result, max_bytes=budget)
    assert 0.9 * budget < report.total <= budget


def test_more_bytes_less_error(result, tmp_path):
    errors = []
    for budget in (900, 1100, 1400):
        write_field(tmp_path / "a.sfz", result, max_bytes=budget)
        errors.append(float((read_field(tmp_path / "a.sfz").render() - result.render()).square().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_chosen_steps_beat_equal_bits(result, tmp_path):
    def error() -> float:
        return float((read_field(tmp_path / "a.sfz").render() - result.render()).square().mean())

    equal = write_field(tmp_path / "a.sfz", result, bits=7)
    before = error()
    write_field(tmp_path / "a.sfz", result, max_bytes=equal.total)
    assert error() < 0.5 * before


def test_the_same_bytes_twice_and_after_reading(result, tmp_path):
    for name in ("a", "b"):
        write_field(tmp_path / f"{name}.sfz", result, bits=8)
    content = (tmp_path / "a.sfz").read_bytes()
    assert content == (tmp_path / "b.sfz").read_bytes()
    again, state = read_field(tmp_path / "a.sfz"), result.field.state_dict()
    from scanfield.codec.weights import rungs_for_bits

    write_field(tmp_path / "c.sfz", again, rungs=rungs_for_bits(state, 8))
    assert content == (tmp_path / "c.sfz").read_bytes()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5, -2.25]),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3),
        torch.tensor([True, False]),
        torch.tensor(7.0, dtype=torch.float64),
    ],
)
def test_further_tensors_are_exact(result, tmp_path, tensor):
    write_field(tmp_path / "a.sfz", replace(result, tensors={"rows": tensor}), bits=8, sections=[Section("x", 9, b"y")])
    back = read_field(tmp_path / "a.sfz").tensors["rows"]
    assert back.dtype == tensor.dtype and torch.equal(back, tensor)
    assert dict(rate_report(tmp_path / "a.sfz").parts)["x"] == 1


def test_impossible_budgets_are_refused_and_leave_no_file(result, tmp_path):
    for budget in (60, 400):
        with pytest.raises(InputError, match=r"bytes(.|\n)*allow"):
            write_field(tmp_path / "a.sfz", result, max_bytes=budget)
    assert not (tmp_path / "a.sfz").exists()
    with pytest.raises(ValueError, match="only one"):
        write_field(tmp_path / "a.sfz", result, max_bytes=900, bits=8)


def _altered(path, change) -> None:
    content = read_container(path)
    change(content.header)
    write_container(path, content.header, content.sections)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["config"].update(width=200_000),
        lambda h: h["config"].update(hidden_layers=10**7),
        lambda h: h["config"].update(width=25),
        lambda h: h["config"].update(width="wide"),
        lambda h: h["spec"].update(domain="cubic"),
        lambda h: h["spec"]["grid"].update(shape=[0, 1, 1]),
        lambda h: h["spec"].update(facts={}),
        lambda h: h.update(method="nothing"),
        lambda h: h.pop("spec"),
        lambda h: h.update(facts=3),
    ],
)
def test_altered_headers_are_one_error(result, tmp_path, change):
    """Also with checksums that fit: a hostile file has them."""
    write_field(tmp_path / "a.sfz", result, bits=8)
    _altered(tmp_path / "a.sfz", change)
    with pytest.raises(InputError):
        read_field(tmp_path / "a.sfz")


def test_files_without_a_field_have_no_rate(tmp_path):
    write_container(tmp_path / "a.sfz", {"other": 1}, [])
    for read in (rate_report, read_field):
        with pytest.raises(InputError, match="describes no field"):
            read(tmp_path / "a.sfz")


def test_a_domain_of_its_own_travels(result, tmp_path):
    from scanfield.space.domain import Domain

    wide = replace(result, spec=replace(result.spec, domain=Domain.of_grid(GRID, margin_mm=5.0)))
    write_field(tmp_path / "a.sfz", wide, bits=8)
    back = read_field(tmp_path / "a.sfz").spec.domain
    assert back.to_json() == wide.spec.domain.to_json()
    assert not isinstance(read_head(tmp_path / "a.sfz").header["spec"]["domain"], str)
