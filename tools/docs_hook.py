"""mkdocs hook: adds the pages of `docs_pages` to the site and to its navigation."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import docs_pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Makes the pages and puts them into the navigation, before the developers' part; the decisions come last."""
    config.extra["made_pages"] = pages = docs_pages.all_pages()
    nav = config.nav
    assert isinstance(nav, list)
    position = next(i for i, entry in enumerate(nav) if isinstance(entry, dict) and "Developers" in entry)
    nav[position:position] = [
        {"Methods": [path for path in pages if path.startswith("methods/")]},
        {"Reference": [path for path in pages if path.startswith("reference/")]},
    ]
    decisions = sorted(path.name for path in (Path(config.docs_dir) / "decisions").glob("[0-9]*.md"))
    nav.append({"Decisions": ["decisions/index.md", *(f"decisions/{name}" for name in decisions)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages to the site's files."""
    for path, text in config.extra["made_pages"].items():
        files.append(File.generated(config, path, content=text))
    return files
