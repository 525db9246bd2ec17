"""The section about a registration: what is read, what is drawn, what is refused."""

import json

import numpy as np
import pytest
import torch

from scanfield.data.displacement import write_displacement
from scanfield.data.nifti import write_nifti
from scanfield.errors import InputError
from scanfield.report.build import build_report
from scanfield.report.deformation import _board, _logarithmic, _scaled
from scanfield.report.record import read_record
from scanfield.space.grid import Grid

UP = (1.0, 2.0, 4.0)  # of every displacement, mm along x, y, z (RAS+)
DEFORMATION = {
    "displacement": "displacement.nii.gz",
    "determinant": "determinant.nii.gz",
    "fixed": "fixed",
    "before": "identity",
    "after": "warped",
}


@pytest.fixture(params=[(12, 14, 10), (12, 14, 1)], ids=["volume", "slice"])
def run(request, tmp_path):
    grid = Grid(request.param, np.diag([-2.0, 2.0, 3.0, 1.0]))
    rng = np.random.default_rng(1)
    images = []
    for name, kind in (("fixed", "reference"), ("identity", "baseline"), ("warped", "method")):
        write_nifti(tmp_path / f"{name}.nii.gz", torch.tensor(rng.normal(size=grid.shape)), grid)
        images.append({"name": name, "label": name, "kind": kind, "file": f"{name}.nii.gz"})
    determinant = torch.ones(grid.shape)
    determinant[3, 4] = -0.5
    write_nifti(tmp_path / "determinant.nii.gz", determinant, grid)
    write_displacement(tmp_path / "displacement.nii.gz", torch.tensor(UP).expand(*grid.shape, 3), grid)
    columns = [{"key": "tre_mm", "label": "mean TRE", "unit": "mm", "better": "lower"}]
    rows = [
        {"name": "identity", "label": "no registration", "kind": "baseline", "values": {"tre_mm": 5.0}},
        {"name": "idir", "label": "IDIR", "kind": "method", "values": {"tre_mm": 1.25}},
    ]
    facts = {"schema": 1, "task": "registration", "method": "idir", "status": "complete", "unit": "HU"}
    facts |= {"images": images, "table": {"columns": columns, "rows": rows}, "deformation": DEFORMATION}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    return tmp_path


def change(run, **members):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | members))


def test_displacements_are_read_along_the_screen(run):
    """Radiological views: axial rows run to the back, columns to the left."""
    record = read_record(run)
    (view, cut) = next(
        (v, c) for v, c in zip(record.views, record.deformation.displacements, strict=True) if v.plane == "axial"
    )
    assert (view.left, view.top) == ("R", "A")
    assert np.allclose(cut[..., :2], [-2.0, -1.0])  # 2 mm to the front is up, 1 mm to the right is left
    assert np.allclose(np.linalg.norm(cut, axis=-1), np.linalg.norm(UP))
    assert sum(d.min() == -0.5 for d in record.deformation.determinants) >= 1


def test_the_page_shows_the_deformation_and_its_numbers(run):
    page = build_report(run).read_text(encoding="utf-8")
    assert "<h2>Deformation</h2>" in page and "up to 4.58 mm" in page and "TRE" in page
    planes = [view.plane for view in read_record(run).views]
    for plane in planes:
        assert (run / "figures" / f"deformation-{plane}.png").stat().st_size > 5000
    assert page.count("black where the map folds") == len(planes)


def test_folds_are_black(run):
    from matplotlib.image import imread

    build_report(run)
    view = next(v for v in read_record(run).views if v.plane == "axial")
    image = imread(run / "figures" / "deformation-axial.png")[..., :3]
    lower_left = image[image.shape[0] // 2 :, : image.shape[1] // 2]
    black = np.abs(lower_left - 0x11 / 255).max(axis=-1) < 0.02
    assert view.flip_rows and black.mean() > 0.2 / (12 * 14)  # one voxel of this plane folds


def test_an_interrupted_registration_names_its_command(run):
    change(run, status="interrupted")
    assert "scanfield register --resume RUN" in build_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"deformation": []}, "'deformation' must be an object"),
        ({"deformation": DEFORMATION | {"before": "none"}}, r"images that do not exist: \['none'\]"),
        ({"deformation": DEFORMATION | {"displacement": "fixed.nii.gz"}}, "no displacement field"),
        ({"deformation": DEFORMATION | {"determinant": "gone.nii.gz"}}, "'gone.nii.gz' is missing"),
        ({"deformation": DEFORMATION | {"determinant": "../run.json"}}, "outside the RUN folder"),
        ({"deformation": DEFORMATION, "images": []}, "needs images"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(run, members, message):
    change(run, **members)
    with pytest.raises(InputError, match=message):
        read_record(run)


def test_a_field_on_another_grid_is_refused(run):
    write_nifti(run / "determinant.nii.gz", torch.ones(5, 5, 5), Grid.centred((5, 5, 5), 2.0))
    with pytest.raises(InputError, match="not on the same grid"):
        read_record(run)


def test_tiles_are_square_in_millimetres(run):
    view = read_record(run).views[0]
    board = _board((64, 32), view)
    assert 0.4 < board.mean() < 0.6
    down, right = (np.flatnonzero(np.diff(line.astype(int)))[0] + 1 for line in (board[:, 0], board[0]))
    assert down * view.spacing_mm[0] == pytest.approx(right * view.spacing_mm[1], rel=0.5)


def test_scales_are_robust():
    image = np.linspace(-5.0, 5.0, 101)
    assert _scaled(image, image).min() == 0 and _scaled(image, image).max() == 1
    assert np.isfinite(_scaled(image, np.ones(4))).all()
    scale = _logarithmic(np.array([0.5, 1.0, 2.0, -1.0]))
    assert scale["norm"](1.0) == pytest.approx(0.5)
    assert scale["norm"].vmin * scale["norm"].vmax == pytest.approx(1.0)
    assert np.isfinite(_logarithmic(np.full(3, -1.0))["norm"].vmax)
