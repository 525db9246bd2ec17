"""Points as CSV: what is kept, what wrong files get, and landmarks that are no millimetres."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.data.points import Points, check_inside, looks_like_voxels, read_point_pairs, read_points, write_points
from scanfield.errors import InputError
from scanfield.space.grid import Grid


def text(tmp_path: Path, content: str | bytes, name: str = "points.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def grid_at(origin: tuple[float, float, float], spacing: tuple[float, float, float] = (1.367, 1.367, 4.0)) -> Grid:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return Grid((166, 195, 25), affine)


def drawn(grid: Grid, count: int = 30, *, whole: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxel indices inside the grid and the same places in mm."""
    index = np.random.default_rng(0).uniform(1, np.asarray(grid.shape) - 2, size=(count, 3))
    index = np.rint(index) if whole else index
    return torch.from_numpy(index), torch.from_numpy(index @ grid.affine[:3, :3].T + grid.affine[:3, 3])


def test_round_trip_keeps_positions_and_further_columns(tmp_path: Path) -> None:
    x = torch.tensor([[-12.5, 30.25, 7.0], [1 / 3, -1e-4, 1234.567891]], dtype=torch.float64)
    points = Points(x, {"name": ("carina", 'left, "upper"'), "reader 2": ("", "3")})
    write_points(tmp_path / "a.csv", points)
    assert (tmp_path / "a.csv").read_text().splitlines()[:2] == [
        "x,y,z,name,reader 2",
        "-12.500000,30.250000,7.000000,carina,",
    ]
    found = read_points(tmp_path / "a.csv")
    torch.testing.assert_close(found.x, x, atol=1e-6, rtol=0)
    assert found.columns == points.columns and found.source == str(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "content",
    [
        "x,y,z\n1,2,3\n-4.5,5e1,6\n",
        "\ufeffX, Y ,Z\r\n1,2,3\r\n\r\n-4.5,50,6.0\r\n",  # as a spreadsheet writes it
        "label,z,y,x\na,3,2,1\nb,6,50,-4.5\n",
    ],
)
def test_headers_in_any_order_and_case(tmp_path: Path, content: str) -> None:
    assert read_points(text(tmp_path, content)).x.tolist() == [[1, 2, 3], [-4.5, 50, 6]]


@pytest.mark.parametrize(
    ("content", "what", "where"),
    [
        ("", "the file is empty", ""),
        ("\n \n", "the file is empty", ""),
        ("x,y,z\n", "a header and no points", ""),
        ("1,2,3\n4,5,6\n", "no header", "line 1"),
        ("x,y\n1,2\n", "lacks z; it names x, y", "line 1"),
        ("i,j,k\n1,2,3\n", "lacks x, y, z; it names i, j, k", "line 1"),
        ("x,y,z,x\n1,2,3,4\n", "'x' twice", "line 1"),
        ("x,y,z,name,name\n1,2,3,a,b\n", "'name' twice", "line 1"),
        ("x;y;z\n1;2;3\n", "not separated by commas", "line 1"),
        ("x,y,z\n1,2,3\n4,5\n", "2 columns, the header 3", "line 3"),
        ("x,y,z\n1,2,3,4\n", "4 columns, the header 3", "line 2"),
        ("x,y,z\n1,2,3\n1,nan,3\n", "y is 'nan'", "line 3"),
        ("x,y,z\n1,2,inf\n", "z is 'inf'", "line 2"),
        ("x,y,z\n1,2,\n", "z is 'empty'", "line 2"),
        ('x,y,z\n"1,5",2,3\n', "x is '1,5'", "line 2"),
        ('x,y,z\n"1,2,3\n', "no CSV file", ""),
        (b"x,y,z\n\xff\xfe,2,3\n", "no text in UTF-8", ""),
    ],
)
def test_wrong_files_are_named_with_the_line(tmp_path: Path, content: str | bytes, what: str, where: str) -> None:
    path = text(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_points(path)
    assert what in error.value.what
    assert error.value.where == (f"{path}: {where}" if where else str(path))


def test_pairs_have_equal_length(tmp_path: Path) -> None:
    a = text(tmp_path, "x,y,z\n1,2,3\n4,5,6\n", "a.csv")
    b = text(tmp_path, "x,y,z\n1,2,4\n4,5,7\n", "b.csv")
    fixed, moving = read_point_pairs(a, b)
    assert (moving.x - fixed.x).tolist() == [[0, 0, 1], [0, 0, 1]]
    with pytest.raises(InputError, match="hold 2 and 1"):
        read_point_pairs(a, text(tmp_path, "x,y,z\n1,2,4\n", "c.csv"))
    with pytest.raises(InputError, match="no such file"):
        read_point_pairs(a, tmp_path / "d.csv")


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (-113.0, -133.0, -48.0), (500.0, 0.0, 0.0)])
def test_voxel_indices_are_told_from_millimetres(origin: tuple[float, float, float]) -> None:
    grid = grid_at(origin)
    index, x = drawn(grid)
    assert looks_like_voxels(index, grid) and looks_like_voxels(index + 1, grid)
    assert not looks_like_voxels(x, grid)
    assert not looks_like_voxels(drawn(grid, whole=False)[1], grid)
    assert not looks_like_voxels(x[:0], grid)


def test_where_both_readings_are_possible_millimetres_are_believed() -> None:
    """Fractions near an origin of zero, whole numbers on a grid of whole millimetres, and few points."""
    near, millimetre = grid_at((0.0, 0.0, 0.0)), grid_at((0.0, 0.0, 0.0), (1.0, 1.0, 4.0))
    assert not looks_like_voxels(drawn(near, whole=False)[0], near)
    assert not looks_like_voxels(drawn(millimetre)[0], millimetre)
    assert not looks_like_voxels(drawn(near)[0][:3], near)


def test_points_outside_get_the_likely_reason() -> None:
    grid = grid_at((100.0, -40.0, 20.0))
    index, x = drawn(grid)
    check_inside(Points(x), grid)
    check_inside(Points(torch.from_numpy(grid.corners_mm())), grid)
    with pytest.raises(InputError, match="voxel indices of the fixed image") as error:
        check_inside(Points(index, source="a.csv"), grid, image="fixed image")
    assert error.value.where == "a.csv" and "affine" in error.value.fix
    with pytest.raises(InputError, match="30 of 30 points lie outside the image") as error:
        check_inside(Points(x * torch.tensor([-1, -1, 1])), grid)
    assert "LPS" in error.value.fix
    far = x.clone()
    far[3] += 1000
    with pytest.raises(InputError, match="1 of 30 points") as error:
        check_inside(Points(far), grid)
    assert "x 99.32 to 326.2" in error.value.fix


def test_what_cannot_be_written(tmp_path: Path) -> None:
    bad = Points(torch.tensor([[0.0, 1.0, 2.0], [torch.nan, 0.0, 0.0]], dtype=torch.float64))
    with pytest.raises(InputError, match="1 of 2 points are NaN"):
        write_points(tmp_path / "a.csv", bad)
    assert list(tmp_path.iterdir()) == []
    for columns in ({"name": ("a",)}, {"X": ("a", "b")}):
        with pytest.raises(ValueError, match="must hold 2 values"):
            Points(bad.x, columns)
