"""The pages under axe-core, the usual checker of accessibility rules, and by keyboard alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parents[2] / "viewer" / "node_modules" / "axe-core" / "axe.min.js"
GRAVE = ("serious", "critical")
DRAWN = ".middle .readout:has-text('mm (RAS+)')"

pytestmark = pytest.mark.slow


def violations(page: Any) -> list[str]:
    """Serious violations of the rules of WCAG 2.1 A and AA and of good practice, with the places they are at."""
    if not AXE.is_file():
        pytest.skip("needs axe-core: npm ci in viewer/")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{rule['id']}: {rule['help']} at {json.dumps([node['target'] for node in rule['nodes']])[:300]}"
        for rule in found
        if rule["impact"] in GRAVE
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_start_page_run_page_and_report(page: Any, shown: Any, finished: Path, segmented: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    with shown(finished, segmented) as address:
        page.goto(address)
        page.locator(".card").nth(1).wait_for()
        assert violations(page) == []
        page.get_by_role("link", name="first run").first.click()
        page.wait_for_selector(DRAWN)
        page.wait_for_selector(".measured .raster canvas")
        page.locator("summary").click()
        page.get_by_role("button", name="render a detail from the field").click()
        page.wait_for_selector(".detail[data-spacing]")
        assert violations(page) == []
        report = page.get_by_role("link", name="report", exact=True).evaluate("a => a.href")
        page.goto(report)
        assert violations(page) == []
    page.complaints.clear()  # the report forbids itself every request, also that of an icon


def test_a_segmentation_and_two_runs_side_by_side(page: Any, shown: Any, finished: Path, segmented: Path) -> None:
    with shown(segmented, finished) as address:
        page.goto(address)
        page.locator(".card").nth(1).wait_for()
        for box in page.locator(".card input").all():
            box.check()
        page.get_by_role("link", name="side by side").click()
        page.wait_for_function("() => document.querySelectorAll('.middle .readout').length === 2")
        page.wait_for_function("() => [...document.querySelectorAll('.middle .readout')].every(r => r.textContent)")
        assert violations(page) == []


def test_every_control_is_reached_in_the_order_in_which_it_is_seen(page: Any, shown: Any, finished: Path) -> None:
    with shown(finished) as address:
        page.goto(address)
        page.wait_for_selector(DRAWN)
        page.wait_for_selector(".measured .raster canvas")
        wanted = page.evaluate(
            """() => [...document.querySelectorAll('a[href], button, input, select, summary, canvas[tabindex]')]
            .filter((e) => e.checkVisibility({ visibilityProperty: true })).length"""
        )
        seen: list[tuple[float, float, str]] = []
        for _ in range(wanted + 5):
            page.keyboard.press("Tab")
            at = page.evaluate(
                """() => { const e = document.activeElement, b = e.getBoundingClientRect();
                return e === document.body ? null : [b.top + scrollY, b.left, e.outerHTML.slice(0, 60)]; }"""
            )
            if at is None:
                break
            seen.append(tuple(at))
        assert len({html + str(top) for top, _, html in seen}) >= wanted
        outlined = page.evaluate(
            """() => { document.querySelector('select').focus();
                return getComputedStyle(document.activeElement).outlineStyle; }"""
        )
        assert outlined == "solid"


def test_nothing_turns_where_motion_is_not_wanted(page: Any, shown: Any, finished: Path) -> None:
    page.emulate_media(reduced_motion="reduce")
    with shown(finished) as address:
        page.goto(address)
        page.wait_for_selector(DRAWN)
        animation = page.evaluate(
            """() => { const s = document.querySelector('.spinner'); s.hidden = false;
                return getComputedStyle(s).animationName; }"""
        )
        assert animation == "none"
