"""`scanfield simulate stacks` and `scanfield assess`, as typed."""

import json
import shlex

import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.cli.parser import Parser
from scanfield.cli.stack_inputs import add_stack_options, read_stacks
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.data.slices import slice_set
from scanfield.data.stack_truth import read_truth, truth_of
from scanfield.data.stacks import read_stack
from scanfield.space.grid import Grid


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """volume.nii.gz and stacks/ of three orientations, with motion and spoilt slices."""
    folder = tmp_path_factory.mktemp("stacks")
    grid = Grid.centred((24, 28, 22), 2.0)
    x = grid.points()
    inside = ((x / torch.tensor([20.0, 24.0, 18.0])) ** 2).sum(-1) < 1
    values = (60 + 40 * torch.sin(x / 5).sum(-1)).clamp(min=20) * inside
    write_nifti(folder / "volume.nii.gz", values.reshape(grid.shape), grid)
    write_nifti(folder / "body.nii.gz", inside.reshape(grid.shape).to(torch.uint8), grid)
    options = ["--motion-deg", "3", "--motion-mm", "1", "--outliers", "0.2", "--noise-percent", "1", "--seed", "7"]
    command = ["simulate", "stacks", str(folder / "volume.nii.gz"), "-o", str(folder / "stacks"), *options]
    assert main([*command, "--mask", str(folder / "body.nii.gz"), "--margin-mm", "4", "--quiet"]) == 0
    return folder


@pytest.fixture
def work(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


NAMES = ("1_axial", "2_coronal", "3_sagittal")
STACKS = [f"stacks/{name}.nii.gz" for name in NAMES]
MASKS = [f"stacks/{name}_mask.nii.gz" for name in NAMES]


def test_the_folder_holds_stacks_masks_and_the_truth(work):
    assert {path.name for path in (work / "stacks").iterdir()} == {
        *(f"{name}.nii.gz" for name in NAMES),
        *(f"{name}_mask.nii.gz" for name in NAMES),
        "truth.json",
    }
    facts = json.loads((work / "stacks/truth.json").read_text())
    assert shlex.split(facts["command"])[:3] == ["scanfield", "simulate", "stacks"]
    assert facts["options"]["motion_deg"] == 3 and facts["options"]["psf"] == "box-sinc"
    stacks = [read_stack(path, 4.0) for path in STACKS]
    slices = slice_set(stacks)
    poses, spoilt = truth_of(slices, read_truth(work / "stacks/truth.json"))
    assert 0 < int(spoilt.sum()) < 0.3 * slices.count
    away = (poses[:, :3, 3] - slices.initial[:, :3, 3]).norm(dim=-1)
    assert 0.3 < float(away.mean()) < 6 and torch.allclose(torch.linalg.det(poses[:, :3, :3]), torch.ones(()).double())


def test_the_same_command_gives_the_same_stacks(work, tmp_path):
    command = shlex.split(json.loads((work / "stacks/truth.json").read_text())["command"])[1:]
    command[command.index("-o") + 1] = str(tmp_path / "again")
    assert main(command) == 0
    for name in NAMES:
        a, b = (read_nifti(f / f"{name}.nii.gz") for f in (work / "stacks", tmp_path / "again"))
        assert torch.equal(a.values, b.values) and np.array_equal(a.grid.affine, b.grid.affine)


def test_text_and_json(work, tmp_path, capsys):
    short = [
        "simulate",
        "stacks",
        "volume.nii.gz",
        "--orientations",
        "sagittal",
        "--gap-mm",
        "2",
        "--thickness-mm",
        "6",
    ]
    assert main([*short, "-o", str(tmp_path / "a")]) == 0
    text = capsys.readouterr().out
    assert "1_sagittal.nii.gz" in text and "slices of 6 mm, gap 2 mm" in text and "truth.json" in text
    assert main([*short, "-o", str(tmp_path / "b"), "--json", "--interleave", "1"]) == 0
    (stack,) = json.loads(capsys.readouterr().out)["stacks"]
    assert stack["thickness_mm"] == 6 and stack["gap_mm"] == pytest.approx(2) and stack["outliers"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--orientations", "axial,obliq"], "unknown orientation 'obliq'"),
        (["--thickness-mm", "0"], "must be greater than 0"),
        (["--thickness-mm", "500"], "thicker than the field of view"),
        (["--outliers", "0.7"], "must be at most 0.5"),
        (["--psf", "sinc"], "'sinc' is not one of gaussian, box-sinc"),
        (["--mask", "stacks/1_axial_mask.nii.gz"], "volume's image and mask are not on the same grid"),
        (["--motion", "wal"], "did you mean 'walk'"),
        (["--thicknes-mm", "3"], "did you mean '--thickness-mm'"),
    ],
)
def test_what_simulate_refuses(work, tmp_path, capsys, arguments, message):
    assert main(["simulate", "stacks", "volume.nii.gz", "-o", str(tmp_path / "x"), *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_simulate_does_not_write_into_a_folder_with_files(work, capsys):
    assert main(["simulate", "stacks", "volume.nii.gz", "-o", "stacks"]) == 2
    assert "new or empty folder" in capsys.readouterr().err


def test_simulate_lists_its_kinds(capsys):
    assert main(["simulate", "--help"]) == 0
    assert "stacks" in capsys.readouterr().out
    assert main(["simulate", "stacs"]) == 2
    assert "did you mean 'stacks'" in capsys.readouterr().err


def assess(*arguments):
    return main(["assess", *STACKS, "--thickness-mm", "4", *arguments])


def test_assess_ranks_by_every_metric(work, capsys):
    orders = {}
    for metric, key, sign in [("ncc", "neighbour_ncc", -1), ("rank", "motion_rank", 1), ("volume", "mask_ml", -1)]:
        assert assess("--stack-masks", *MASKS, "--metric", metric, "--json") == 0
        stacks = json.loads(capsys.readouterr().out)["stacks"]
        values = [sign * stack[key] for stack in stacks]
        assert values == sorted(values) and len(stacks) == 3
        assert all(len(stack["similarity"]) == stack["slices"] for stack in stacks)
        orders[metric] = [stack["file"] for stack in stacks]
    assert assess("--stack-masks", *MASKS, "--metric", "rank", "--best", "2", "--quiet") == 0
    assert capsys.readouterr().out.split() == orders["rank"][:2]


def test_assess_as_a_table(work, capsys):
    assert assess("--stack-masks", *MASKS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "ncc*" in lines[0] and "4.00 mm" in lines[1] and "higher is better" in lines[-1]
    found = {line.split()[0]: line for line in lines[1:4]}
    for stack in read_truth("stacks/truth.json"):  # a slice of a third of its brightness cannot be missed
        for number, how in stack.outliers.items():
            if how == "dropout":
                assert f"{number} dark" in found[stack.file]


def test_options_of_stacks(work, tmp_path, capsys):
    def volumes(*arguments):
        assert assess("--json", "--metric", "volume", *arguments) == 0
        return {s["file"]: s["mask_ml"] for s in json.loads(capsys.readouterr().out)["stacks"]}

    whole, masked = volumes(), volumes("--stack-masks", *MASKS)
    assert all(masked[name] < 0.8 * whole[name] for name in STACKS)
    limits = (["--volume-mask", "body.nii.gz"], ["--background-threshold", "30"], ["--otsu"])
    for limit in limits:
        limited = volumes(*limit)
        assert all(0 < limited[name] < whole[name] for name in STACKS), limit
    shared = volumes("--stack-masks", *MASKS, "--intersection")
    assert all(0.5 * masked[name] < shared[name] < masked[name] for name in STACKS)
    assert assess("--json", "--thickness-mm", "4", "3", "2.5") == 0
    thick = {s["file"]: s["thickness_mm"] for s in json.loads(capsys.readouterr().out)["stacks"]}
    assert list(map(thick.get, STACKS)) == [4, 3, 2.5]


def test_masks_are_written_where_their_stacks_are(work, tmp_path, capsys):
    assert assess("--volume-mask", "body.nii.gz", "--otsu", "--write-masks", str(tmp_path / "masks"), "--json") == 0
    before = json.loads(capsys.readouterr().out)
    masks = [str(tmp_path / "masks" / f"{name}_mask.nii.gz") for name in NAMES]
    assert assess("--stack-masks", *masks, "--json") == 0
    assert json.loads(capsys.readouterr().out) == before
    for stack, mask in zip(STACKS, masks, strict=True):
        assert np.array_equal(read_nifti(stack).grid.affine, read_nifti(mask).grid.affine)


def test_masks_of_one_name_are_not_written_over_each_other(work, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "1_axial.nii.gz"
    write_nifti(other, read_nifti(STACKS[0]).values + 1, read_nifti(STACKS[0]).grid)
    assert main(["assess", STACKS[0], str(other), "--write-masks", str(tmp_path / "masks")]) == 2
    assert "two stacks have the same file name" in capsys.readouterr().err and not (tmp_path / "masks").exists()


def test_a_bias_field_is_divided_out(work, tmp_path):
    """The stack brightens towards one side; N4 leaves little of it."""
    pytest.importorskip("SimpleITK")
    stack = read_nifti(STACKS[0])
    ramp = torch.linspace(-1, 1, stack.grid.shape[2]).exp()
    write_nifti(tmp_path / "bias.nii.gz", stack.values * ramp, stack.grid)
    parser = Parser("x", "x")
    add_stack_options(parser)
    inside = read_nifti(MASKS[0]).values > 0

    def slope(*options):
        args = parser.parse(["--stack-masks", MASKS[0], "--allow-parallel", *options])
        (found,) = read_stacks([str(tmp_path / "bias.nii.gz")], args)
        ratio = (found.scan.values / stack.values)[inside].log()
        z = inside.nonzero()[:, 2].double()
        return float(torch.cov(torch.stack([z, ratio.double()]))[0, 1] / z.var())

    assert slope() == pytest.approx(2 / (stack.grid.shape[2] - 1), rel=1e-3)
    assert abs(slope("--correct-bias")) < 0.3 * slope()


def test_a_mask_with_another_header(work, tmp_path, capsys):
    mask = read_nifti(MASKS[0])
    affine = mask.grid.affine.copy()
    affine[0, 3] += 3
    write_nifti(tmp_path / "m.nii.gz", mask.values.to(torch.uint8), Grid(mask.grid.shape, affine))
    masks = ["--stack-masks", str(tmp_path / "m.nii.gz"), *MASKS[1:]]
    assert assess(*masks) == 2
    message = capsys.readouterr().err
    assert "origins differ" in message and "--fix-mask-header" in message and "m.nii.gz" in message
    assert assess(*masks, "--fix-mask-header") == 0
    fixed = capsys.readouterr().out
    assert assess("--stack-masks", *MASKS) == 0
    assert capsys.readouterr().out == fixed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stack-masks", MASKS[0]], "3 stacks need as many masks, got 1"),
        (["--thickness-mm", "4", "4"], "one for each of 3; got 2"),
        (["--thickness-mm", "0"], "thickness of a slice must be a positive number of mm, got 0"),
        (["--thickness-mm", "0.4"], "% of the body would be missing"),
        (["--thickness-mm", "400"], "thicker than the field of view"),
        (["--fix-mask-header"], "no masks whose headers"),
        (["--multiband", "7"], "cannot be acquired 7 at a time"),
        (["--slice-axis", "5"], "axis of the slices is 0, 1 or 2"),
        (["--metric", "nc"], "did you mean 'ncc'"),
        (["--background-threshold", "1e6"], "no pixel of the stack lies in the pixels brighter than 1e+06"),
    ],
)
def test_what_assess_refuses(work, capsys, arguments, message):
    assert assess(*arguments) == 2
    assert message in capsys.readouterr().err


def test_assess_refuses_what_is_no_stack(work, tmp_path, capsys):
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.ones((8, 8, 4, 3), np.float32), np.eye(4)), tmp_path / "time.nii.gz")
    assert main(["assess", str(tmp_path / "time.nii.gz")]) == 2
    assert "4 axes" in capsys.readouterr().err
    assert main(["assess", STACKS[0], STACKS[0]]) == 2
    assert "two stacks are the same image" in capsys.readouterr().err
    far = read_nifti(STACKS[1])
    affine = far.grid.affine.copy()
    affine[2, 3] += 300
    write_nifti(tmp_path / "far.nii.gz", far.values, Grid(far.grid.shape, affine))
    assert main(["assess", STACKS[0], str(tmp_path / "far.nii.gz")]) == 2
    assert "do not overlap: their centres are 300 mm apart" in capsys.readouterr().err
