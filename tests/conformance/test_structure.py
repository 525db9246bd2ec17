"""The order of the packages, and what every file owes its reader."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import scanfield
from scanfield.methods import api

ROOT = Path(scanfield.__file__).parent
TESTS = Path(__file__).parents[1]
FILES = sorted(ROOT.rglob("*.py"))
LONGEST = 460

# A module may import what stands on an earlier line (or in its own package). Light modules that never import torch,
# such as methods.api, stand early: everything may ask them.
ORDER = [
    "errors",
    "kernels",
    "space",
    "data",
    "operators",
    "fields",
    "losses",
    "run",
    "fitting",
    "methods.api",
    "methods.config",
    "tasks.posterior",
    "tasks.result",
    "tasks.model",
    "tasks.series",
    "codec",
    *sorted({f"methods.{path.parent.name}" for path in ROOT.glob("methods/*/*.py")}),
    "baselines",
    "metrics",
    "report",
    "tasks.table",
    "tasks.folder",
    "tasks.uncertainty",
    "tasks.outcome",
    "tasks.labelling",
    "tasks.segmentation",
    "tasks.stack_registration",
    "tasks.priors",
    "tasks.metal",
    "tasks.reconstruction",
    "tasks.image_fit",
    "tasks.dosimetry",
    "tasks.dose",
    "tasks.dose_search",
    "tasks.warp",
    "tasks.dose_sum",
    "tasks.alignment",
    "tasks.registration",
    "tasks.stack_files",
    "tasks.stacks",
    "tasks.mri_files",
    "tasks.mri",
    "tasks.compression",
    "tasks.brick_fits",
    "tasks.bricks",
    "tasks.brick_decoding",
    "tasks.training",
    "tasks.synthesis",
    "shortcuts",
    "view",
    "bench",
    "cli",
    "__init__",
    "__main__",
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def layer(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("methods", "tasks") else parts[0]


def imports(path: Path) -> list[str]:
    """Modules of this library that a file imports when it is imported, without the leading 'scanfield.'."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                below = ROOT.parent.joinpath(*node.module.split("."), f"{alias.name}.py")
                found.append(f"{node.module}.{alias.name}" if below.is_file() else node.module)
    return [name.removeprefix("scanfield.") for name in found if name.startswith("scanfield.")]


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_module_has_a_place_in_the_order():
    layers = {layer(module_name(path)) for path in FILES if path.name != "__init__.py" or path.parent == ROOT}
    assert layers <= set(ORDER), layers - set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_point_backwards(path):
    mine = layer(module_name(path))
    if path.name == "__init__.py" and path.parent != ROOT:
        assert path.read_text(encoding="utf-8") == "", "inside packages __init__ stays empty"
        return
    for name in imports(path):
        theirs = layer(name)
        assert theirs == mine or ORDER.index(theirs) < ORDER.index(mine), f"{mine} imports {name}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if ids(p).startswith("methods/") and p.parent.name != "methods"], ids=ids
)
def test_methods_know_nothing_of_each_other(path):
    others = [name for name in imports(path) if layer(name).startswith("methods.") and layer(name) not in ORDER[:11]]
    assert others == []


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size], ids=ids)
def test_every_public_name_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [] if ast.get_docstring(tree) else ["the module itself"]

    def visit(body: list[ast.stmt], prefix: str, protocol: bool) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            obvious = prefix and isinstance(node, ast.FunctionDef) and (protocol or obvious_name(node))
            if not ast.get_docstring(node) and not obvious:
                missing.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.", any(ast.unparse(b).startswith("Protocol") for b in node.bases))

    visit(tree.body, "", False)
    assert missing == []


def obvious_name(node: ast.FunctionDef) -> bool:
    """Methods whose meaning their class or their name and types give: forward, jets, to_json, one-line properties."""
    return node.name in ("forward", "backward", "jets", "to_json", "from_json") or len(node.body) <= 2


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_files_are_short_and_plain(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST
    tree = ast.parse(text)
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"hasattr", "torch.manual_seed", "np.random.seed", "pickle.load", "torch.load", "eval", "exec"}
    if not ids(path).startswith(("cli/", "bench/")):
        assert "print" not in called


OURS = [card for card in api.discover().values() if card.module.startswith("scanfield.")]


@pytest.mark.parametrize("card", OURS, ids=lambda c: c.name)
def test_every_method_has_a_module_a_test_and_a_bench_protocol(card):
    folder = card.module.split(".")[2]
    assert (ROOT / "methods" / folder / f"{card.name}.py").is_file()
    assert (TESTS / "methods" / folder / f"test_{card.name}.py").is_file()
    assert (ROOT / "bench" / "protocols" / f"{card.name}.py").is_file()


def test_every_method_file_has_a_card():
    for path in ROOT.glob("methods/*/*.py"):
        assert path.name == "__init__.py" or path.with_suffix(".md").is_file(), f"{path.name} has no card"
