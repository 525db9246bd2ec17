"""Learning from many: batches, codes and encoders, and who is watched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scanfield.errors import InputError
from scanfield.fields.condition import LatentTable
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig
from scanfield.fitting.regimes.population import Draw, Epochs, amortise, auto_decode, infer, ramp, show_member, watch
from scanfield.run import Run, Shown
from scanfield.space.grid import Grid


class Part:
    """Workers that only share, for looking at the parts of a batch."""

    shared = True

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def share(self, items):
        return items[self.rank :: self.count]

    def average(self, parameters) -> None: ...

    def means(self, values):
        return list(values)

    def any(self, flag):
        return flag


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(7, 3), (4, 4), (3, 8), (5, 1)])
def test_every_epoch_has_everybody_once(count, size):
    members = Epochs(count, size, Run(seed=1))
    seen = [draw.index for step in range(4 * count) for draw in members(step)]
    assert len(seen) == 4 * count * size
    epochs = [tuple(seen[start : start + count]) for start in range(0, len(seen), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 4 or len(set(epochs)) > 1, "in another order each time"


def test_epochs_and_steps():
    members = Epochs(10, 4, Run())
    assert [members.epoch(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]
    assert [members.steps(epochs) for epochs in (1, 2, 4)] == [3, 5, 10]
    drawn = Counter(draw.index for step in range(members.steps(2)) for draw in members(step))
    assert min(drawn.values()) == 2


def test_batches_depend_on_the_seed_and_the_step_alone():
    def batch(step: int, seed: int = 3, name: str = "members") -> list[tuple[int, float]]:
        members = Epochs(20, 6, Run(seed=seed), name=name)
        return [(draw.index, float(torch.rand((), generator=draw.generator))) for draw in members(step)]

    members = Epochs(20, 6, Run(seed=3))
    for step in range(9):
        members(step)
    later = [(draw.index, float(torch.rand((), generator=draw.generator))) for draw in members(9)]
    assert batch(9) == later, "not on the steps before"
    assert batch(9) != batch(9, seed=4) and batch(9) != batch(9, name="others")
    assert len({number for _, number in [*batch(0), *batch(1)]}) == 12, "every draw has a generator of its own"


def test_processes_share_a_batch_without_changing_it():
    whole = Epochs(9, 6, Run(seed=5))
    parts = [Epochs(9, 6, Run(seed=5, workers=Part(rank, 3))) for rank in range(3)]
    for step in (0, 1, 17):
        together = [draw for part in parts for draw in part(step)]
        assert Counter(d.index for d in together) == Counter(d.index for d in whole(step))
        for mine in parts[1](step):
            same = [d for d in whole(step) if d.generator.initial_seed() == mine.generator.initial_seed()]
            assert [d.index for d in same] == [mine.index]


def test_batches_that_cannot_be():
    for count, size in ((0, 2), (3, 0)):
        with pytest.raises(InputError, match="a member at least"):
            Epochs(count, size, Run())
    with pytest.raises(InputError, match="batch of 4 cannot be shared equally by 3 processes") as caught:
        Epochs(9, 4, Run(workers=Part(0, 3)))
    assert "a batch of 6" in caught.value.fix


def test_a_ramp_rises_and_stays():
    assert [ramp(4, 2.0)(step) for step in (0, 1, 4, 9)] == [0.0, 0.5, 2.0, 2.0]
    assert ramp(0, 3.0)(0) == 3.0


# An auto-decoder: lines y = a x + b, of which (a, b) is the only thing that differs --------------------------------


LINES = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -0.8], [0.8, 0.9]])


class Lines:
    """A network that turns codes into lines."""

    def __init__(self, run: Run, size: int = 2) -> None:
        self.run = run
        draws = run.generator("weights")
        self.network = nn.Sequential(nn.Linear(size, 2, bias=False), nn.Dropout(0.0))
        with torch.no_grad():
            self.network[0].weight.normal_(generator=draws)
        self.table = LatentTable(len(LINES), size, deviation=0.1, generator=draws)
        self.modes: set[bool] = set()

    def error(self, codes: Tensor, lines: Tensor, x: Tensor) -> Tensor:
        """Square errors (b,) at points (b, n)."""
        self.modes.add(self.network.training)
        slope, offset = self.network(codes).unbind(-1)
        wanted = lines[:, :1] * x + lines[:, 1:]
        return (slope[:, None] * x + offset[:, None] - wanted).square().mean(dim=1)

    def loss(self, step: int, codes: Tensor, drawn: list[Draw]) -> dict[str, Tensor]:
        x = torch.stack([torch.randn(32, generator=draw.generator) for draw in drawn])
        return {"data": self.error(codes, LINES[[draw.index for draw in drawn]], x).mean()}

    def fit(self, steps: int = 400, prior=1e-4, **more):
        groups = [
            ParameterGroup("network", list(self.network.parameters()), 1e-2),
            ParameterGroup("codes", [self.table.free], 3e-2),
        ]
        plan = more.pop("plan", FitConfig(steps, log_every=20))
        members = Epochs(more.pop("items", len(LINES)), 2, self.run)
        return auto_decode(
            "lines", groups, self.table, more.pop("loss", self.loss), members, plan, self.run, prior=prior, **more
        )


def test_network_and_codes_are_learned_together():
    lines = Lines(Run(seed=0))
    log = lines.fit()
    assert log.history[-1]["loss"]["data"] < 1e-3 < log.history[0]["loss"]["data"]
    made = lines.network(lines.table.codes()).detach()
    torch.testing.assert_close(made, LINES, atol=0.05, rtol=0)


def test_the_prior_keeps_codes_short_and_its_weight_may_rise():
    free, held = Lines(Run(seed=0)), Lines(Run(seed=0))
    free.fit(prior=0.0)
    log = held.fit(prior=ramp(100, 0.3), squared=False)
    index = torch.arange(len(LINES))
    assert held.table.norm(index) < 0.5 * free.table.norm(index)
    assert "prior" in log.history[0]["loss"]


def test_items_may_be_parts_of_subjects():
    """Two views of each line, one code a line."""
    lines = Lines(Run(seed=0))
    subjects = [0, 0, 1, 1, 2, 2, 3, 3]

    def loss(step: int, codes: Tensor, drawn: list[Draw]) -> dict[str, Tensor]:
        x = torch.stack([torch.rand(32, generator=draw.generator) * (2 * (draw.index % 2) - 1) for draw in drawn])
        return {"data": lines.error(codes, LINES[[subjects[draw.index] for draw in drawn]], x).mean()}

    lines.fit(800, loss=loss, items=len(subjects), subjects=subjects)
    torch.testing.assert_close(lines.network(lines.table.codes()).detach(), LINES, atol=0.1, rtol=0)


def infer_lines(lines: Lines, wanted: Tensor, **more) -> tuple[Tensor, object]:
    x = torch.linspace(-1, 1, 20).expand(len(wanted), 20)
    return infer(
        lines.network,
        torch.zeros(len(wanted), 2),
        lambda step, codes: {"data": lines.error(codes, wanted, x).sum()},
        FitConfig(300),
        lines.run.again(),
        rate=5e-2,
        **more,
    )


def test_a_new_subject_gets_a_code_and_the_network_stays():
    lines = Lines(Run(seed=0))
    lines.fit()
    before = [p.detach().clone() for p in lines.network.parameters()]
    lines.modes.clear()
    wanted = torch.tensor([[0.5, 0.1], [-0.4, 0.6], [0.0, 0.0]])
    with torch.no_grad():
        codes, log = infer_lines(lines, wanted)
    torch.testing.assert_close(lines.network(codes).detach(), wanted, atol=1e-2, rtol=0)
    assert not codes.requires_grad and log.steps == 300
    assert all(torch.equal(a, b) for a, b in zip(before, lines.network.parameters(), strict=True))
    assert lines.modes == {False} and lines.network.training, "evaluation mode meanwhile"


def test_a_code_does_not_depend_on_who_else_is_inferred():
    lines = Lines(Run(seed=0))
    lines.fit()
    wanted = torch.tensor([[0.5, 0.1], [-0.4, 0.6]])
    both, _ = infer_lines(lines, wanted, prior=0.01)
    torch.testing.assert_close(infer_lines(lines, wanted[1:], prior=0.01)[0], both[1:], rtol=1e-4, atol=1e-5)


def test_inference_leaves_no_gradients_in_the_network():
    lines = Lines(Run(seed=0))
    infer_lines(lines, LINES)
    assert all(p.grad is None and p.requires_grad for p in lines.network.parameters())


def test_a_training_that_watches_others_stops_early_and_keeps_the_best():
    """The error of the watched falls, then rises for good: patience ends the training, the best weights return."""
    lines = Lines(Run(seed=0))
    errors = iter([3.0, 2.0, 1.0, 1.5, 1.6, 0.1])
    kept = []

    def error(k: int) -> float:
        kept.append(lines.table.free.detach().clone())
        return next(errors)

    plan = FitConfig(1000, check_every=5, patience=2, keep_best=True)
    log = lines.fit(plan=plan, held_out=watch(1, error, lines.network))
    assert (log.stopped, log.steps, log.best_step, log.best_held_out) == ("held-out", 25, 15, 1.0)
    assert torch.equal(lines.table.free, kept[2])


def test_a_validation_by_inference_does_not_disturb_the_training():
    def curve(watched: bool) -> list[float]:
        lines = Lines(Run(seed=0))
        found: list[float] = []

        def held_out() -> float:
            _, log = infer_lines(lines, LINES.flip(1))
            found.append(float(log.history[-1]["loss"]["data"]))
            return found[-1]

        log = lines.fit(60, plan=FitConfig(60, check_every=20, log_every=1), held_out=held_out if watched else None)
        assert not watched or found[-1] < found[0]
        return [line["loss"]["data"] for line in log.history]

    assert curve(True) == curve(False)


def test_stopped_and_resumed_is_bit_equal(tmp_path: Path):
    def fit(folder: Path | None, stop_at: int | None = None, resume: bool = False) -> Tensor:
        run = Run(folder, seed=7, resume=resume)
        run.observers = (lambda event: run.stop.set() if event["step"] == stop_at else None,)
        lines = Lines(run)
        lines.fit(plan=FitConfig(40, log_every=1), prior=ramp(10, 1e-2))
        return torch.cat([lines.table.free.detach().flatten(), lines.network[0].weight.detach().flatten()])

    (tmp_path / "log.jsonl").write_text("")
    whole = fit(None)
    assert not torch.equal(fit(tmp_path, stop_at=13), whole)
    assert torch.equal(fit(tmp_path, resume=True), whole)


# Amortised ------------------------------------------------------------------------------------------------------------


def test_an_encoder_serves_subjects_it_has_not_seen():
    """From samples of a line to the line: never fitted to the new one."""
    run = Run(seed=2)
    x = torch.linspace(-1, 1, 8)
    encoder = nn.Linear(8, 2)
    with torch.no_grad():
        encoder.weight.normal_(std=0.1, generator=run.generator("weights"))
        encoder.bias.zero_()

    def draw(member: Draw) -> tuple[Tensor, Tensor]:
        line = torch.randn(2, generator=member.generator)
        return line[0] * x + line[1], line

    def loss(step: int, batch: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        seen, lines = (torch.stack(part) for part in zip(*batch, strict=True))
        return {"data": (encoder(seen) - lines).square().mean()}

    groups = [ParameterGroup("encoder", list(encoder.parameters()), 2e-2)]
    members = Epochs(6, 4, run)
    log = amortise("lines", groups, loss, members, draw, FitConfig(500, check_every=100), run, held_out=lambda: 0.0)
    assert log.history[-1]["loss"]["data"] < 1e-3
    torch.testing.assert_close(encoder(0.7 * x - 0.2), torch.tensor([0.7, -0.2]), atol=0.03, rtol=0)


def test_watching_is_a_mean_in_evaluation_mode_and_leaves_modes_alone():
    frozen, network = nn.Dropout(0.5).eval(), nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
    modes = []

    def error(k: int) -> float:
        modes.append((network.training, network[1].training, frozen.training))
        return float(k)

    assert watch(4, error, network, frozen)() == 1.5
    assert set(modes) == {(False, False, False)}
    assert network.training and network[1].training and not frozen.training
    with pytest.raises(InputError, match="nobody is watched"):
        watch(0, error)


def test_a_member_is_chosen_where_somebody_looks_and_drawn_in_evaluation_mode():
    network, modes, chosen = nn.Dropout(0.5), [], []
    grid = Grid.centred((2, 2, 1), 1.0)

    def choose() -> Shown:
        chosen.append(True)

        def image(plane: Grid) -> Tensor:
            modes.append(network.training)
            return network(torch.ones(plane.shape))

        def prepare():
            modes.append(network.training)
            return image

        return Shown(prepare, grid, "1", "somebody", (0.0, 1.0))

    show_member(Run(), choose, network)
    assert not chosen, "nothing is read where nobody looks"

    class Looking:
        def show(self, shown: Shown) -> None:
            self.shown = shown

        def look(self, stage, step, in_place) -> None: ...

    preview = Looking()
    show_member(Run(preview=preview), choose, network)
    assert chosen == [True] and not modes
    assert torch.equal(preview.shown.prepare()(grid), torch.ones(grid.shape))
    assert modes == [False, False] and network.training
    assert (preview.shown.what, preview.shown.window, preview.shown.grid) == ("somebody", (0.0, 1.0), grid)
