"""Shared by all tests: shape checks on every annotated function, one thread, the development data if there is any."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# Every shape and type is checked at every call of the library; production pays nothing. The hook wants the checker's
# name, and ours lets an int stand for a float, as Python's typing does.
checker = types.ModuleType("scanfield_type_checker")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
sys.modules[checker.__name__] = checker
install_import_hook("scanfield", f"{checker.__name__}.check")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Bit-equal results do not depend on the machine's number of cores, and parallel test runs do not fight."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def development_data() -> Path:
    """The folder named by SCANFIELD_DATA; the test is skipped where it is not set."""
    folder = os.environ.get("SCANFIELD_DATA")
    if not folder:
        pytest.skip("needs the development data: set SCANFIELD_DATA to their folder")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"SCANFIELD_DATA names '{folder}', which is not a folder")
    return path
