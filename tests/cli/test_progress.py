"""What a run's events look like on the terminal."""

from scanfield.cli.progress import Bar, Lines, WarningsOnly, describe, progress


def step(number, of=200, held_out=None):
    return {
        "stage": "fit",
        "step": number,
        "of": of,
        "seconds": number * 0.1,
        "loss": {"projection": 0.0125},
        "held_out": held_out,
    }


def test_lines_say_every_tenth_once_with_the_time_left(capsys):
    with Lines() as display:
        for number in range(1, 201):
            display(step(number))
        display({"baseline": "TV"})
        display({"warning": "shown in the summary"})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[0] == "fit: 20/200  projection 0.0125  18.0 s left"
    assert lines[9] == "fit: 200/200  projection 0.0125  0.0 s left"
    assert lines[10] == "TV ..."


def test_lines_keep_stages_apart(capsys):
    with Lines() as display:
        display(step(20))
        display(step(20) | {"stage": "second"})
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["fit", "second"]


def test_held_out_values_are_shown():
    assert describe(step(1, held_out=0.5)) == "projection 0.0125, held out 0.5"


def test_quiet_says_warnings_only(capsys):
    with progress(quiet=True) as display:
        display(step(100))
        display({"baseline": "TV"})
        display({"warning": "careful"})
    assert isinstance(display, WarningsOnly)
    captured = capsys.readouterr()
    assert captured.err == "warning: careful\n" and captured.out == ""


def test_the_bar_is_for_terminals(capsys, monkeypatch):
    assert isinstance(progress(quiet=False), Lines)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert isinstance(progress(quiet=False), Bar)


def test_the_bar_takes_every_event(capsys):
    with Bar() as display:
        for event in (step(10), step(200, held_out=0.1), step(5) | {"stage": "next"}):
            display(event)
        display({"baseline": "TV"})
        display({"warning": "shown in the summary"})
    text = capsys.readouterr().err
    assert "fit" in text and "200/200" in text and "TV ..." in text
