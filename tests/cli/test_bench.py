"""`scanfield bench`, with a protocol of its own."""

import json

import pytest

from scanfield.bench import runner
from scanfield.bench.protocol import BenchResult, Check
from scanfield.cli.main import main
from scanfield.errors import InputError


@pytest.fixture
def protocols(monkeypatch, tmp_path):
    """Three protocols: one passes, one fails, one lacks its data."""
    for name in ("bad", "good", "lost"):
        (tmp_path / f"{name}.py").write_text(f'"""The {name} one.\n\nMore."""\n')

    def run_protocol(name, *, device, seed, observers, keep):
        for observer in observers:
            observer({"case": "a case"})
            observer({"done": 2, "of": 3, "taken": 2 if keep else 0, "edited": False})
        if name == "lost":
            raise InputError("this benchmark needs data that do not ship with the package")
        check = Check("above the rival", value=1.0 + seed, threshold=0.5 if name == "good" else 5.0, unit="dB")
        result = BenchResult([{"method": name, "psnr_db": 30.0}], [check], ["a note"])
        facts = {"method": name, "checks": [check.to_json()], "table": result.table, "notes": result.notes}
        facts["protocol_sha256"] = runner.protocol_sha256(name)
        facts |= {"taken": {"results": 0, "of": 3 if name == "good" else 0, "seconds": 0}} if keep else {}
        return facts | {"seconds": 1.0, "device": "cpu", "commit": "abc", "date": "2026-01-01"}

    monkeypatch.setattr(runner, "PROTOCOLS", tmp_path)
    monkeypatch.setattr(runner, "run_protocol", run_protocol)


def test_list_shows_the_first_line(protocols, capsys):
    assert main(["bench", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "good  The good one."
    assert main(["bench", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bad"] == "The bad one."


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bad", 1), ("lost", 2), ("all", 2)])
def test_the_exit_code_tells_whether_the_checks_hold(protocols, name, code, capsys):
    assert main(["bench", "run", name]) == code
    assert ("needs data" in capsys.readouterr().err) == (code == 2)


def test_json_is_the_last_line(protocols, capsys):
    assert main(["bench", "run", "good", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["method"] == "good"
    assert result["checks"][0] == {
        "name": "above the rival",
        "value": 1.0,
        "threshold": 0.5,
        "sense": ">=",
        "unit": "dB",
        "passed": True,
    }


def test_the_case_under_way_is_said_on_stderr(protocols, capsys):
    assert main(["bench", "run", "good"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "  a case ...\n  2 of 3 done\n" and "a case" not in captured.out
    assert main(["bench", "run", "good", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["bench", "run", "good", "--keep", "kept"]) == 0
    captured = capsys.readouterr()
    assert "  2 of 3 done (2 of them before)\n" in captured.err and "nothing was kept" not in captured.err
    assert main(["bench", "run", "bad", "--keep", "kept"]) == 1
    assert "bad has no independent fits: nothing was kept" in capsys.readouterr().err


def test_list_and_compare_know_of_another_protocol(protocols, tmp_path, capsys):
    folder = str(tmp_path / "results")
    assert main(["bench", "run", "good", "--append", folder]) == 0
    assert main(["bench", "list", "--results", folder]) == 0
    assert "changed" not in capsys.readouterr().out
    (tmp_path / "good.py").write_text('"""The good one, on other data."""\n')
    assert main(["bench", "list", "--results", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "good  The good one, on other data. [changed since it was last measured]"
    assert "changed" not in lines[0] + lines[2], "those were never measured"
    assert main(["bench", "run", "good", "--append", folder]) == 0
    assert main(["bench", "compare", "good", "--results", folder]) == 0
    assert "The protocols differ" in capsys.readouterr().out
    assert main(["bench", "list", "--results", folder]) == 0
    assert "changed" not in capsys.readouterr().out


def test_results_are_kept_and_compared(protocols, tmp_path, capsys):
    folder = str(tmp_path / "results")
    for seed in ("0", "3"):
        assert main(["bench", "run", "good", "--seed", seed, "--append", folder]) == 0
    capsys.readouterr()
    assert main(["bench", "compare", "good", "--results", folder]) == 0
    text = capsys.readouterr().out
    assert "before: abc on cpu" in text and "above the rival" in text and " 3 " in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "god"], "there is no benchmark 'god' (did you mean 'good'?)"),
        (["rnu", "good"], "unknown command 'bench rnu' (did you mean 'run'?)"),
        (["compare", "good"], "there are no results of 'good'"),
        (["run"], "the following arguments are required: METHOD"),
    ],
)
def test_mistakes_are_named(protocols, argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *argv]) == 2
    assert message in capsys.readouterr().err
