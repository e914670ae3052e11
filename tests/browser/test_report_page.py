"""The report in a real headless Chromium, from a file, with no network."""

import io
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from results import BLOG, START, TUNED, epochs, trials, write
from rresnet.reporting import report

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
MORE_QUIET = ("--disable-component-update", "--disable-sync")
EVIL = "<img src=x onerror=document.title=1>"
playwright = pytest.importorskip("playwright.sync_api")
if CHROMIUM is None:
    pytest.skip("no Chromium here (Debian: apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with every section: two runs, prices, energy, epochs, flags, failures and a name that attacks."""
    place = tmp_path_factory.mktemp("report")
    sizes = [
        ({**recipe, "batch_size": b}, [f * b + r for r in range(4)])
        for recipe, f in ((BLOG, 2.0), (TUNED, 5.0))
        for b in (8, 16, 32, 64)
    ]
    figures = {
        "compute_images_per_second": 500.0,
        "input_images_per_second": 400.0,
        "percent_of_limit": 12.5,
        "bottleneck": "input",
        "energy_joules": 50.0,
        "quality_flags": ["swapping"],
        "dataset_fingerprint": EVIL,
        "cpu_model": EVIL,
    }
    rows = trials(*sizes, **figures) + trials(({"batch_size": 128}, [None] * 2), error_message=EVIL)
    folder = write(place / "a", rows, epochs(rows[:8], [0.5, 0.6]))
    write(
        folder, trials((BLOG, [100.0] * 3), run_id="r0", hostname="other", start=START - timedelta(days=1)), name="r0"
    )
    return Path(report.write([folder], Console(file=io.StringIO()), out=place / "out", prices=["cpu=1/h"]))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *MORE_QUIET])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, page_file):
    """Open the report at a width and in a colour scheme; afterwards nothing may have been said or asked for."""
    said, asked, contexts = [], [], []

    def opened(width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert asked == [page_file.as_uri()] * len(contexts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(visit, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen_and_every_figure_is_drawn(visit, width):
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    drawn = page.evaluate(
        "[...document.querySelectorAll('figure')].map((f) => [f.querySelector('h3').textContent,"
        " f.querySelector('svg').getBoundingClientRect().height, f.querySelectorAll('svg path').length])"
    )
    first = [title for title, _, _ in drawn][:9]
    assert first == [
        "Speedup",
        "Images/s against batch size",
        "Where the time goes",
        "Three clocks",
        "Share of the machine's limit",
        "Learning, and time to accuracy",
        "Memory",
        "Energy",
        "Cost",
    ]
    assert all(height > 50 and marks > 5 for _, height, marks in drawn)


def test_colours_follow_the_scheme(visit):
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    assert visit(scheme="light").evaluate(ink) == "rgb(90, 90, 90)"
    assert visit(scheme="dark").evaluate(ink) == "rgb(165, 163, 157)"


def rows_of(page):
    return page.locator("#all-rows tbody tr").count()


def column(page, name):
    titles = page.locator("#all-rows thead th").all_inner_texts()
    place = [title.rstrip(" ↑↓") for title in titles].index(name) + 1
    return page.locator(f"#all-rows tbody td:nth-child({place})").all_inner_texts()


def test_the_table_sorts_filters_and_turns_its_pages(visit):
    page = visit()
    status = page.locator("#rows-status")
    assert status.inner_text() == "Rows 1 to 25 of 37"  # 8 settings x 4, 2 that failed, 3 of the other machine
    page.get_by_role("button", name="Next").click()
    assert (status.inner_text(), rows_of(page)) == ("Rows 26 to 37 of 37", 12)
    assert page.get_by_role("button", name="Next").is_disabled()
    page.get_by_role("button", name="images per second").click()
    assert column(page, "images per second")[:3] == ["16", "17", "18"]  # 2 x 8 and its three repeats
    page.get_by_role("button", name="images per second").press("Enter")
    assert column(page, "images per second")[0] == "323"  # 5 x 64 + 3
    assert page.locator("#all-rows th[aria-sort=descending]").count() == 1
    page.get_by_label("Filter").fill("recipe=tuned images_per_second>300")
    assert (status.inner_text(), rows_of(page)) == ("Rows 1 to 4 of 4 that match, of 37", 4)
    page.get_by_label("Filter").fill("error")
    assert rows_of(page) == 2
    page.get_by_label("Filter").fill("nothing like that")
    assert status.inner_text() == "No row matches, of 37"
    page.get_by_label("Filter").fill("nonsense_column>3")
    assert status.inner_text() == "No column nonsense_column: no row matches, of 37"
    page.get_by_label("Filter").fill("")
    assert status.inner_text() == "Rows 1 to 25 of 37"


def test_columns_can_be_chosen_and_the_rows_saved(visit):
    page = visit()
    page.get_by_text("Columns", exact=True).click()
    assert "energy joules" not in page.locator("#all-rows thead").inner_text()
    page.get_by_label("energy joules").check()
    assert column(page, "energy joules")[:2] in (["50", "50"], ["", ""])
    page.get_by_label("Filter").fill("status=error")
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV of these rows").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("part,setting,batch_size")
    assert EVIL in lines[1]


def test_what_attacks_is_text(visit):
    page = visit()
    assert page.title() == "What to train on: compare on vm, 01 Mar 2026 12:00 UTC"
    assert page.locator("img").count() == 0
    assert page.get_by_text(EVIL).count() >= 1


def test_the_printed_page_has_every_row_and_goes_back(visit):
    page = visit()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert rows_of(page) == 37
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert rows_of(page) == 25
    assert page.pdf().startswith(b"%PDF")
