"""`import scanfield`: names on first use, nothing heavy before."""

import subprocess
import sys
from importlib import import_module

import pytest

import scanfield


@pytest.mark.parametrize("name", [n for n in scanfield.__all__ if n != "__version__"])
def test_every_public_name_is_there_and_documented(name):
    value = getattr(scanfield, name)
    assert value.__doc__ and name in dir(scanfield)
    assert import_module(value.__module__) is not None


def test_importing_loads_nothing_heavy():
    code = "import sys, scanfield; dir(scanfield); sys.exit(bool({'torch', 'numpy', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Gird'"):
        _ = scanfield.Gird
    assert not [name for name in scanfield.__all__ if name not in dir(scanfield)]
