"""`list`, `show` and `cite`: what they print, and that they stay light."""

import json
import subprocess
import sys

import pytest

from scanfield.cli.main import main
from scanfield.methods.api import TASKS, discover


def test_list_names_every_method_under_its_task(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for card in discover().values():
        assert f"\n{card.task}\n" in f"\n{text}" and f"  {card.name} " in text
        assert " ".join(card.summary.split())[:30] in " ".join(text.split())


def test_list_as_json_and_by_task(capsys):
    assert main(["list", "--task", "reconstruction", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in facts} == {c.name for c in discover().values() if c.task == "reconstruction"}
    assert all(entry["choose_when"] and entry["accepts"] for entry in facts)


def test_a_task_without_methods_says_so(capsys):
    empty = sorted(set(TASKS) - {card.task for card in discover().values()})
    if not empty:
        pytest.skip("every task has a method by now")
    assert main(["list", "--task", empty[0]]) == 0
    assert f"no method for the task '{empty[0]}' yet" in capsys.readouterr().out


def test_show_gives_the_whole_card(capsys):
    card = discover()["scope"]
    assert main(["show", "scope"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (card.title, card.authors, card.choose_when, card.choose_not_when, card.link, *card.accepts):
        assert " ".join(part.split()) in text
    assert " ".join(card.text.split()) in text


def test_show_renders_markdown_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["show", "scope"]) == 0
    assert discover()["scope"].title in " ".join(capsys.readouterr().out.split())


def test_cite_prints_bibtex(capsys):
    assert main(["cite", "scope"]) == 0
    assert capsys.readouterr().out == discover()["scope"].bibtex.strip() + "\n"
    assert main(["cite", "scope", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["link"] == discover()["scope"].link


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "scpe"], "unknown method 'scpe' (did you mean 'scope'?)"),
        (["cite", "scpe"], "unknown method 'scpe' (did you mean 'scope'?)"),
        (["show"], "the following arguments are required: METHOD"),
        (["list", "--task", "dos"], "--task: 'dos' is not one of"),
        (["list", "--jsn"], "unknown option '--jsn' (did you mean '--json'?)"),
        (["list", "scope"], "unknown argument 'scope'"),
    ],
)
def test_mistakes_are_named(argv, message, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"scanfield: {message}") and captured.out == ""


@pytest.mark.parametrize("line", ["--help", "list", "show scope", "cite scope", "reconstruct --help", "bench list"])
def test_light_commands_import_nothing_heavy(line):
    code = (
        "import sys; from scanfield.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules); sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
