"""The protocol's own pieces: which patients, whose structures, and what its notes say."""

import pytest

from scanfield.bench.protocols import dose_inr
from scanfield.tasks.table import Row


def test_the_carrier_is_reported_and_nobody_that_was_tuned_on():
    assert dose_inr.PATIENTS[0] == dose_inr.CARRIER
    assert not {1, 113, 121} & set(dose_inr.PATIENTS)


def test_margins_are_signed_and_by_patient():
    def rows(ours: float, theirs: float) -> dict[str, Row]:
        return {
            name: Row(name, name, "baseline", {"psnr_db:box": value})
            for name, value in (("dose_inr", ours), ("sperr", theirs))
        }

    assert dose_inr._over([rows(54.0, 52.5), rows(50.0, 62.0)], "sperr") == "+1.5, -12.0"


@pytest.mark.data
def test_plans_of_the_development_data(development_data):
    dose, structures = dose_inr.plan(dose_inr.CARRIER)
    assert 60 < dose.highest_gy < 90 and dose.grid.shape == (128, 128, 128)
    names = [structure.name for structure in structures.structures]
    assert "PTV70" in names and "possible_dose_mask" not in names
