import pydicom
import pytest

from scanfield.data.dicom_values import decimal, numbers, parsing
from scanfield.errors import InputError


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -123.456789012345, 1 / 3, -1e-17, 2.5e300, 123456789012.5])
def test_decimals_have_at_most_16_characters_and_the_value(value):
    text = decimal(value)
    assert len(text) <= 16 and float(text) == pytest.approx(value, rel=1e-8)


def test_numbers_are_checked_for_their_count():
    data = pydicom.Dataset()
    data.PixelSpacing = [1.5, 2]
    assert numbers(data, "PixelSpacing", 2).tolist() == [1.5, 2.0]
    with pytest.raises(InputError, match="must hold 3"):
        numbers(data, "PixelSpacing", 3)
    with pytest.raises(InputError, match="ImagePositionPatient"):
        numbers(data, "ImagePositionPatient", 3)


def test_any_failure_becomes_one_error():
    with pytest.raises(InputError, match=r"damaged: a\?b"), parsing():
        raise AttributeError("a\0b")
    with pytest.raises(InputError, match="mine"), parsing():
        raise InputError("mine")
