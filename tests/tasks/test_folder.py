"""What every run's folder has in common."""

from __future__ import annotations

import pytest
import torch

from scanfield.errors import InputError
from scanfield.run import Run
from scanfield.tasks.folder import begin, usual_range


def test_black_and_white_are_never_the_same():
    low, high = usual_range(torch.linspace(0, 1000, 300_000))
    assert low == pytest.approx(10, abs=0.1) and high == pytest.approx(995, abs=0.1)
    assert usual_range(torch.full((3, 4, 5), 7, dtype=torch.int16)) == (6.5, 7.5)


@pytest.mark.parametrize(("how", "goes_on"), [({}, True), ({"resumes": True}, True), ({"resumes": False}, False)])
def test_a_taken_folder_is_only_continued_by_what_can_be_continued(tmp_path, how, goes_on):
    begin(Run(tmp_path / "run"), {}, **how)
    with pytest.raises(InputError, match="already holds a run") as caught:
        begin(Run(tmp_path / "run"), {}, **how)
    assert ("--resume" in caught.value.fix) is goes_on and "--force" in caught.value.fix
