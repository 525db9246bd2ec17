"""The protocol's data, rows and checks, with fits too short to mean anything."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.bench import parallel
from scanfield.bench.protocol import BenchResult, Check
from scanfield.bench.protocols import st_inr_dmri as protocol
from scanfield.data.samples import sample
from scanfield.data.scan import Scan
from scanfield.methods.reconstruction.st_inr_dmri import Config
from scanfield.operators.simulate_kspace import SimulatedKSpace
from scanfield.run import Run

pytest.importorskip("finufft")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(Config.fast(), levels=3, log2_table=12, width=16, layers=1, steps=3)
    monkeypatch.setattr(Config, "fast", staticmethod(lambda: tiny))
    for name, value in {"PIXELS": 24, "FRAMES": 7, "COILS": 3}.items():
        monkeypatch.setattr(protocol, name, value)


def chest() -> Scan:
    scan = sample("ct_chest_slice")
    return replace(scan, values=scan.values.float() + 1024)


def made() -> SimulatedKSpace:
    return protocol._simulated(chest(), 6, Run())


def test_what_is_simulated_moves_and_brightens() -> None:
    truth, kspace = made().truth.abs(), made().kspace
    assert truth.shape == (7, 24, 24, 1) and kspace.acquisition.views == 42
    assert float(truth.std(0).max()) > 0.1 * float(truth.max()) and kspace.noise.level > 0
    again = protocol._simulated(chest(), 6, Run(seed=1))
    assert torch.equal(again.truth, made().truth) and not torch.equal(again.kspace.values, kspace.values)


def test_every_row_and_check_of_a_moving_case() -> None:
    result = BenchResult()
    protocol._moving("small", made(), Run(), result)
    assert [row["image"] for row in result.table] == ["ST-INR", "gridding", "CG-SENSE", "temporal TV"]
    assert all({"psnr_db", "psnr_db_moving", "ssim", "held_out_percent", "seconds"} <= set(row) for row in result.table)
    psnr = {row["image"]: row["psnr_db"] for row in result.table}
    assert [check.threshold for check in result.checks] == [3.0, 0.0]
    for check, rival in zip(result.checks, ("CG-SENSE", "temporal TV"), strict=True):
        assert check.value == pytest.approx(psnr["ST-INR"] - psnr[rival], abs=0.02)


def test_frames_of_which_nothing_was_fitted() -> None:
    result = BenchResult()
    protocol._held_out_frames("small", made(), Run(), result)
    assert len(result.table) == 4 and len(result.checks) == 2
    psnr = {row["image"]: row["psnr_db_held_out_frames"] for row in result.table}
    assert psnr["temporal TV"] > psnr["gridding"] > psnr["ST-INR"]  # three steps are no fit
    assert result.checks[0].value == pytest.approx(psnr["ST-INR"] - psnr["CG-SENSE"], abs=0.02)


def test_ablations_name_the_published_parts() -> None:
    result = BenchResult()
    without = {name: 38.0 + number for number, name in enumerate(protocol.ABLATIONS)}
    protocol._ablation_checks(40.0, without, result)
    values = {check.name.split(": ")[1]: check.value for check in result.checks}
    assert values["gain by coarse to fine (paper)"] == 40 - without["all levels at once"]
    # The preset has plain squares: the other data term is the published one.
    assert values["gain by the relative data term (paper)"] == without["the other data term"] - 40
    changed = {name: protocol._ablated(name) for name in protocol.ABLATIONS}
    assert changed["the other data term"].loss == "relative"
    assert all(config != Config.fast() for config in changed.values())


def test_a_case_gives_its_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_made", lambda title, run: made())
    row, *others = protocol.part("without low rank", Run()).table
    assert not others and row["image"] == "ST-INR, without low rank"
    assert len(protocol.part(protocol.FRAMES_KEPT, Run()).checks) == 2


def test_a_run_gathers_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(title: str, run: Run) -> BenchResult:
        return BenchResult([{"psnr_db": 40.0 - (title in protocol.ABLATIONS)}], [Check(title, 0.5, 1.0, "<=", "dB")])

    monkeypatch.setattr(protocol, "part", part)
    monkeypatch.setattr(parallel, "_processors", lambda: 1)
    result = protocol.run(Run())
    titles = [*protocol.MOVING, protocol.FRAMES_KEPT, *protocol.ABLATIONS, *protocol.STILL]
    assert result.checks[: len(titles)] == [Check(title, 0.5, 1.0, "<=", "dB") for title in titles]
    assert len(result.table) == len(titles)
    assert {check.value for check in result.checks[len(titles) :]} == {1.0, -1.0}, "what each ablation loses"


def test_a_still_scan_is_judged_against_all_of_its_data() -> None:
    full = made().kspace
    still = replace(full, acquisition=replace(full.acquisition, frame=None, frames=None, timing=None, time_s=None))
    result = BenchResult()
    protocol._still("small", still, np.arange(0, 42, 2), Run(), result)
    assert [row["image"] for row in result.table] == ["ST-INR", "gridding", "CG-SENSE"]
    assert len(result.checks) == 2 and result.table[2]["psnr_db"] > result.table[1]["psnr_db"]


@pytest.mark.data
def test_raw_data_of_scanners(development_data) -> None:
    for title in protocol.STILL:
        full, few = protocol._raw(title)
        assert full.sensitivities is not None and len(few) <= full.acquisition.views / 3 + 1
