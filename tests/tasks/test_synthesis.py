"""Generating from a model whose shapes are known: balls, whose codes are radius and growth."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scanfield.data.meshes import read_mesh
from scanfield.data.sequences import read_sequence
from scanfield.errors import InputError, ScanfieldError
from scanfield.methods import api
from scanfield.methods.synthesis.cell_shapes import Config
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks import synthesis
from scanfield.tasks.model import Model
from scanfield.tasks.synthesis import GenerateOptions, generate, new_codes

CODES = torch.tensor([[4.0, 0.2], [5.0, 0.1], [6.0, 0.0]])  # radius in mm at the start, mm per second
SMALL = GenerateOptions(4, frames=3)


class Ball(nn.Module):
    def __init__(self, code: Tensor) -> None:
        super().__init__()
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        radius = self.code[0] + self.code[1] * x[..., 3:]
        return x[..., :3].norm(dim=-1, keepdim=True) - radius


def balls(drawn: Tensor | None = None) -> Any:
    """A method whose draws are `drawn`, one after the other; None: around the mean."""
    left = None if drawn is None else iter(drawn)

    def draw(model: Model, count: int, generator: torch.Generator, *, spread: float) -> Tensor:
        if left is not None:
            return torch.stack([next(left) for _ in range(count)])
        return CODES.mean(dim=0) + spread * torch.tensor([0.8, 0.05]) * torch.randn(count, 2, generator=generator)

    return SimpleNamespace(
        codes=lambda model: CODES,
        draw=draw,
        shape=lambda model, code, device: Ball(code),
        canvas=lambda model: (Grid.centred((24, 24, 24), 1.0), [0.0, 5.0, 10.0, 15.0]),
    )


@pytest.fixture
def known(monkeypatch):
    """Puts a method of balls in the place of the real one."""

    def use(drawn: Tensor | None = None) -> Model:
        module = balls(drawn)
        monkeypatch.setattr(synthesis.api, "load", lambda name: module)
        return Model("cell_shapes", Config.tiny(), {"codes": CODES}, licence="CC0")

    return use


def test_masks_meshes_and_descriptors_are_those_of_the_codes(known, tmp_path):
    drawn = torch.tensor([[4.5, 0.15], [6.0, 0.1]])
    found = generate(known(drawn), GenerateOptions(2, frames=3), Run(tmp_path))
    assert found.times_s == [0.0, 7.5, 15.0] and found.frames.shape == (2, 4, 24, 24, 24)
    assert torch.equal(found.codes, drawn)
    for k, (radius, growth) in enumerate(drawn.tolist()):
        sequence = read_sequence(tmp_path / f"sequence_{k + 1:02d}.nii.gz")
        assert torch.equal(sequence.frames, found.sequence(k).frames) and sequence.step_s == 7.5
        for t, moment in enumerate(found.moments_s):
            volume = 4 / 3 * np.pi * (radius + growth * moment) ** 3
            assert found.descriptors[k][t].volume_mm3 == pytest.approx(volume, rel=0.06)
        for t, moment in enumerate(found.times_s):
            volume = 4 / 3 * np.pi * (radius + growth * moment) ** 3
            assert sequence.frames[t].sum() == pytest.approx(volume, rel=0.06)
            mesh = read_mesh(tmp_path / "meshes" / f"sequence_{k + 1:02d}_frame_{t + 1:02d}.ply")
            assert mesh.closed and mesh.volume_mm3 == pytest.approx(volume, rel=0.03)
    rows = list(csv.DictReader((tmp_path / "descriptors.csv").open()))
    assert len(rows) == (3 + 2) * 4 and {row["set"] for row in rows} == {"training", "generated"}
    last = float(rows[-1]["volume_mm3"])
    assert last == pytest.approx(found.descriptors[1][3].volume_mm3, rel=1e-5)


def test_the_folder_tells_what_was_made_and_from_what(known, tmp_path):
    model = known()
    generate(model, SMALL, Run(tmp_path, seed=5), request={"command": "scanfield generate m -n 4 -o out", "inputs": []})
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["status"] == "complete" and facts["task"] == "synthesis" and facts["model"] == model.key
    assert facts["licence"] == "CC0" and facts["seed"] == 5 and facts["options"]["mode"] == "prior"
    assert [entry["file"] for entry in facts["synthesis"]["sequences"]] == [
        f"sequence_0{k}.nii.gz" for k in (1, 2, 3, 4)
    ]
    page = (tmp_path / "report.html").read_text()
    assert "Generated shapes in time" in page and "training, as the model shows it" in page
    assert (tmp_path / "contact_sheet.png").read_bytes() == (tmp_path / "figures" / "contact-sheet.png").read_bytes()


def test_a_notebook_shows_shapes_and_numbers(known):
    shown = generate(known(), GenerateOptions(2, frames=2), Run())._repr_html_()
    assert shown.startswith("<img") and "sphericity" in shown


def test_copies_are_called_copies_and_the_nearest_is_named(known):
    drawn = torch.stack([CODES[2], torch.tensor([4.0, 0.17]), CODES[0]])
    found = generate(known(drawn), GenerateOptions(3), Run())
    assert found.nearest.tolist() == [2, 0, 0]
    torch.testing.assert_close(found.nearest_dice[[0, 2]], torch.ones(2))
    assert 0.8 < found.nearest_dice[1] < 0.98
    assert "2 of 3 sequences overlap a training sequence" in " ".join(found.warnings)
    values = {row.name: row.values for row in found.table.rows}
    assert values["generated"]["largest_dice"] == 1 and values["training"]["largest_dice"] < 0.98


def test_shapes_that_vanish_are_drawn_again_and_too_many_refused(known, tmp_path):
    drawn = torch.tensor([[-1.0, 0.0], [5.0, -0.6], [5.0, 0.0]])
    run = Run()
    found = generate(known(drawn), GenerateOptions(1), run)
    torch.testing.assert_close(found.codes, drawn[2:])
    assert run.notes == ["2 drawn shapes vanished in a frame and were drawn again."]
    with pytest.raises(ScanfieldError, match="of 5 drawn sequences 5 vanish"):
        generate(known(drawn[:1].expand(9, -1)), GenerateOptions(1), Run(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_shapes_unlike_the_training_are_called_so(known):
    usual = generate(known(CODES), GenerateOptions(3), Run())
    assert not any("The mean" in text for text in usual.warnings)
    small = generate(known(torch.tensor([[3.0, 0.0], [3.1, 0.0]])), GenerateOptions(2), Run())
    assert any(text.startswith("The mean volume of what was generated is smaller") for text in small.warnings)


def test_shapes_cut_off_by_the_box_are_named(known):
    found = generate(known(torch.tensor([[13.0, 0.0]])), GenerateOptions(1), Run())
    assert any("1 of 1 sequences touch the border" in text for text in found.warnings)


def test_finer_voxels_and_more_moments_do_not_change_what_is_judged(known):
    drawn = torch.tensor([[5.0, 0.2]])
    coarse = generate(known(drawn), GenerateOptions(1), Run())
    fine = generate(known(drawn), GenerateOptions(1, frames=7, spacing_mm=0.5), Run())
    assert torch.equal(fine.frames, coarse.frames) and fine.descriptors == coarse.descriptors
    sequence = fine.sequence(0)
    assert sequence.frames.shape == (7, 48, 48, 48) and sequence.step_s == pytest.approx(2.5)
    assert float(sequence.frames[-1].sum()) / 8 == pytest.approx(4 / 3 * np.pi * 8.0**3, rel=0.01)
    assert torch.equal(coarse.sequence(0).frames, coarse.frames[0])


def test_a_shape_that_fills_the_box_is_written_and_named(known, tmp_path):
    """At the end it has no surface there."""
    found = generate(known(torch.tensor([[6.0, 3.0]])), GenerateOptions(1), Run(tmp_path))
    assert [text for text in found.warnings if "fills" in text] == [
        f"sequence_01 fills the model's box in frame {t} of 4." for t in (2, 3, 4)
    ]
    assert {path.name[-6:-4] for path in (tmp_path / "meshes").iterdir()} == {"01"}
    assert read_sequence(tmp_path / "sequence_01.nii.gz").frames[-1].all()


def test_voxels_as_large_as_the_box_are_refused_at_once(known, tmp_path):
    with pytest.raises(InputError, match="voxels of 30 mm leave nothing of shapes in a box of 24 mm"):
        generate(known(), GenerateOptions(1, spacing_mm=30.0), Run(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_shape_that_vanishes_between_the_moments_of_the_training_is_written_and_named(known, tmp_path):
    """Coarse voxels miss a small ball."""
    drawn = torch.tensor([[1.3, 0.2]])
    found = generate(known(drawn), GenerateOptions(1, spacing_mm=4.0), Run(tmp_path))
    assert [text for text in found.warnings if "vanishes" in text] == [
        f"sequence_01 vanishes in frame {t} of 4." for t in (1, 2, 3)
    ]
    assert [path.name for path in (tmp_path / "meshes").iterdir()] == ["sequence_01_frame_04.ply"]
    with pytest.raises(InputError, match="frame 0 of 4 is empty"):
        found.sequence(0)


def test_modes_take_codes_from_where_they_say(known):
    model, g = known(), torch.Generator().manual_seed(0)
    module = balls()
    prior = new_codes(module, model, 4000, g, mode="prior", spread=1.0)
    torch.testing.assert_close(prior.mean(dim=0), CODES.mean(dim=0), atol=0.05, rtol=0)
    near = new_codes(module, model, 300, g, mode="near", spread=0.01)
    assert torch.cdist(near, CODES).min(dim=1).values.max() < 0.05
    assert len(set(torch.cdist(near, CODES).argmin(dim=1).tolist())) == 3
    between = new_codes(module, model, 300, g, mode="between", spread=1.0)
    off = []
    for p, q in ((0, 1), (1, 2), (0, 2)):
        line, away = CODES[q] - CODES[p], between - CODES[p]
        off.append((away - (away @ line)[:, None] / line.square().sum() * line).norm(dim=1))
    assert torch.stack(off).min(dim=0).values.max() < 1e-5
    assert between[:, 0].min() >= 4 and between[:, 0].max() <= 6 and between[:, 0].std() > 0.3
    lonely = SimpleNamespace(codes=lambda m: CODES[:1], draw=module.draw)
    with pytest.raises(InputError, match="nothing between the codes of a single sequence"):
        new_codes(lonely, model, 1, g, mode="between", spread=1.0)


def test_the_seed_decides(known):
    one, two, other = (generate(known(), SMALL, Run(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one.frames, two.frames) and not torch.equal(one.codes, other.codes)


def test_impossible_requests_are_refused(known, tmp_path):
    for settings in ({"count": 0}, {"frames": 1}, {"spread": -1.0}):
        with pytest.raises(InputError):
            GenerateOptions(**settings)
    wrong = Model("coinpp", api.load("coinpp").Config.tiny(), {})
    with pytest.raises(InputError, match="makes no shapes: its task is compression"):
        generate(wrong, SMALL, Run())
    generate(known(), SMALL, Run(tmp_path))
    with pytest.raises(InputError, match="already holds a run") as taken:
        generate(known(), SMALL, Run(tmp_path))
    assert "--resume" not in taken.value.fix
    again = GenerateOptions(2, frames=3, meshes=False)
    generate(known(), again, Run(tmp_path, replace=True))
    assert not list((tmp_path / "meshes").iterdir()) and len(list(tmp_path.glob("sequence_*"))) == 2
