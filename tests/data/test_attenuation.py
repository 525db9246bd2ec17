"""Which unit a CT image is in, and what becomes of it."""

import pytest
import torch

from scanfield.data.attenuation import attenuation, ct_unit
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid


def image(low, high, unit="arbitrary"):
    return Scan(torch.tensor([low, high]).reshape(2, 1, 1), Grid.centred((2, 1, 1), 1.0), unit=unit, source="image.nii")


@pytest.mark.parametrize(
    ("scan", "asked", "unit"),
    [
        (image(-1000.0, 300.0), "auto", "HU"),
        (image(0.0, 0.05), "auto", "1/mm"),
        (image(0.0, 300.0, "HU"), "auto", "HU"),
        (image(-0.01, 0.05, "1/mm"), "auto", "1/mm"),
        (image(0.0, 255.0), "HU", "HU"),
        (image(0.0, 3.0), "1/mm", "1/mm"),
    ],
)
def test_the_unit_is_stated_seen_or_given(scan, asked, unit):
    assert ct_unit(scan, asked) == unit


@pytest.mark.parametrize("scan", [image(0.0, 255.0), image(-100.0, 50.0)])
def test_values_that_could_be_anything_are_refused(scan):
    with pytest.raises(InputError, match="cannot tell the unit") as caught:
        attenuation(scan)
    assert caught.value.where == "image.nii"


def test_hounsfield_units_follow_the_definition():
    assert attenuation(image(-1000.0, 1000.0), mu_water_per_mm=0.02).values.flatten().tolist() == pytest.approx(
        [0, 0.04]
    )


def test_attenuation_stays_as_it_is_below_zero_too():
    scan = attenuation(image(-0.01, 0.05, "1/mm"))
    assert scan.unit == "1/mm" and scan.values.flatten().tolist() == pytest.approx([-0.01, 0.05])


def test_channels_are_refused():
    scan = Scan(torch.zeros(2, 2, 2, 3), Grid.centred((2, 2, 2), 1.0))
    with pytest.raises(InputError, match="one channel"):
        attenuation(scan)
