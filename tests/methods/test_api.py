from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scanfield.errors import InputError, ScanfieldError
from scanfield.methods import api

CARD = """+++
name = "mine"
label = "Mine"
title = "A title"
authors = "A. Author"
year = 2024
venue = "Journal 1:2-3"
doi = "10.1/2"
task = "reconstruction"
accepts = ["image"]
summary = "s"
choose_when = "w"
choose_not_when = "n"
bibtex = "@misc{a, year = {2024}}"
+++
# Text
"""


def written(folder: Path, text: str = CARD, name: str = "mine") -> Path:
    path = folder / f"{name}.md"
    path.write_text(text)
    return path


def test_a_card(tmp_path):
    card = api.read_card(written(tmp_path), "some.module")
    assert (card.name, card.accepts, card.module, card.text) == ("mine", ("image",), "some.module", "# Text")
    assert card.link == "https://doi.org/10.1/2"
    assert card.citation == "A. Author. A title. Journal 1:2-3, 2024."
    arxiv = api.read_card(written(tmp_path, CARD.replace('doi = "10.1/2"', 'arxiv = "2209.05483"')), "m")
    assert arxiv.link == "https://arxiv.org/abs/2209.05483"


def test_windows_line_ends(tmp_path):
    path = tmp_path / "mine.md"
    path.write_bytes(CARD.replace("\n", "\r\n").encode())
    assert api.read_card(path, "m").title == "A title"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("+++\nname", "name", "between two lines"),
        ("year = 2024\nvenue", 'year = "2024"\nvenue', "'year'"),
        ('title = "A title"\n', "", "'title'"),
        ('accepts = ["image"]', 'accepts = "image"', "'accepts'"),
        ('accepts = ["image"]', "accepts = [1]", "'accepts'"),
        ("summary =", "sumary =", "summary"),
        ("summary =", 'takes_prior = "yes"\nsummary =', "'takes_prior'"),
        ("venue =", 'vanue = "x"\nvenue =', "vanue"),
        ('"reconstruction"', '"cooking"', "task"),
        ('name = "mine"', 'name = "yours"', "file name"),
        ('name = "mine"', "name = ", "mine.md"),
    ],
)
def test_a_malformed_card_names_file_and_key(tmp_path, old, new, message):
    assert old in CARD
    with pytest.raises(ScanfieldError, match=re.escape(message)) as caught:
        api.read_card(written(tmp_path, CARD.replace(old, new)), "m")
    assert "mine.md" in str(caught.value)


def test_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'scope'"):
        api.card("scop")


def test_check_accepts_names_what_does():
    api.check_accepts("scope", "projections:fan")
    with pytest.raises(InputError, match="scope") as caught:
        api.check_accepts("scope", "image")
    assert "siren" in caught.value.fix
    with pytest.raises(InputError) as caught:
        api.check_accepts("scope", "ultrasound")
    assert "none yet" in caught.value.fix


def test_check_takes_prior_names_what_does(tmp_path):
    assert not api.read_card(written(tmp_path), "m").takes_prior
    assert api.read_card(written(tmp_path, CARD.replace("summary =", "takes_prior = true\nsummary =")), "m").takes_prior
    api.check_takes_prior("nerp")
    with pytest.raises(InputError, match="'scope' takes no prior image") as caught:
        api.check_takes_prior("scope")
    assert "nerp" in caught.value.fix


def test_discovery_imports_no_torch_and_no_method():
    code = "import sys; from scanfield.methods import api; api.discover()\n"
    code += "print([m for m in sys.modules if m == 'torch' or m.startswith('scanfield.methods.reconstruction.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
