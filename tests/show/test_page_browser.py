"""The page of a run's conversations in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrix.commands.show import main
from matrix.data.rows import Row
from tests.show.browser import NAMES, Browser, find_chromium
from tests.show.conversations import HOSTILE, broken, plain, talk, write_run

LISTED = "[...document.querySelectorAll('#list .id')].map((one) => one.textContent)"
OPENED = "document.querySelector('#conversation h2')?.textContent"
# Not innerText: it lacks what the browser hasn't laid out yet (content-visibility).
TEXT = "document.getElementById('conversation').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = find_chromium()
    if binary is None:
        pytest.skip(f"no browser: install Debian's package chromium, or have one of {', '.join(NAMES)} on PATH")
    with Browser(binary, tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


def many() -> list[Row]:
    """120 rows in order of the input: every tenth failed, the others agreed or ran out of turns, every second is right."""
    rows: list[Row] = []
    for index in range(120):
        row = broken(index) if index % 10 == 9 else talk(index, right=index % 2 == 0, said=f"Country {index}, I think.")
        if index % 10 == 3:
            row.termination = "max_turns"
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    return write_page(folder, *many())


def write_page(folder: Path, *rows: Row) -> str:
    run = write_run(folder / "run", *rows)
    assert main([str(run), "--html", str(folder / "page.html")]) == 0
    return (folder / "page.html").as_uri()


def search(browser: Browser, words: str) -> None:
    """Type into the field, as a reader does."""
    browser.run("document.getElementById('query').value = ''")
    browser.press("Escape")
    browser.press("/")
    browser.type(words)


def choose(browser: Browser, field: str, value: str) -> None:
    browser.run(
        f"(() => {{ const it = document.getElementById('{field}'); it.value = '{value}'; it.dispatchEvent(new Event('input')); }})()"
    )


def test_it_says_what_the_run_was_and_lists_its_rows(browser: Browser, page: str) -> None:
    browser.open(page)
    assert browser.run("document.title") == "coral-smollm2 / run: conversations"
    head = browser.run("document.querySelector('header').innerText")
    assert re.search(r"team\s+coral", head)
    assert re.search(r"rows\s+120", head)
    assert re.search(r"agreement\s+96", head)
    assert re.search(r"error\s+12", head)
    assert browser.run(LISTED) == [f"q{index}" for index in range(50)]
    assert browser.run("document.getElementById('count').textContent") == "120 conversations"
    assert browser.run(OPENED) == "q0"


def test_no_error_and_no_request_but_for_the_page_itself(browser: Browser, page: str) -> None:
    browser.open(page)
    search(browser, "country")
    browser.press("Escape")
    browser.press("d")
    browser.press("j")
    assert browser.complaints == []
    assert browser.requests == [page]


def test_a_search_leaves_the_rows_that_hold_all_words(browser: Browser, page: str) -> None:
    browser.open(page)
    search(browser, '"I agree" country 77')
    browser.wait(f"{LISTED}.length === 1")
    assert browser.run(LISTED) == ["q77"]
    assert browser.run("document.getElementById('count').textContent") == "1 of 120 conversations"
    browser.run("document.querySelector('#list a').click()")
    browser.wait(f"{OPENED} === 'q77'")
    assert browser.run("CSS.highlights.get('found').size") >= 3
    search(browser, "KeyError")
    browser.wait(f"{LISTED}.length === 12")


def test_filters_by_termination_status_agent_and_score(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.run("document.querySelector('.ending[data-ending=max_turns]').click()")
    assert browser.run(LISTED) == [f"q{index}" for index in range(3, 120, 10)]
    assert browser.run("document.querySelector('.ending[aria-pressed=true]').dataset.ending") == "max_turns"
    browser.run("document.getElementById('clear').click()")
    choose(browser, "status-filter", "=error")
    assert browser.run(LISTED) == [f"q{index}" for index in range(9, 120, 10)]
    browser.run("document.getElementById('clear').click()")
    choose(browser, "agent-filter", "=student")
    assert browser.run("document.getElementById('count').textContent") == "108 of 120 conversations"
    choose(browser, "score-filter", "=score math")
    choose(browser, "most", "0.5")
    assert browser.run("document.getElementById('count').textContent") == "48 of 120 conversations"
    assert browser.run(LISTED)[:3] == ["q1", "q3", "q5"]
    browser.run("document.getElementById('clear').click()")
    assert browser.run("document.getElementById('count').textContent") == "120 conversations"


def test_a_deep_link_opens_its_row_and_turns_to_its_page(browser: Browser, page: str) -> None:
    browser.open(f"{page}#row=q101/0")
    assert browser.run(OPENED) == "q101"
    assert browser.run("document.querySelector('#list a[aria-current]').getAttribute('href')") == "#row=q101/0"
    assert browser.run("document.getElementById('page').textContent") == "page 3 of 3"
    assert "France: capital Paris" in browser.run(TEXT)
    browser.run("location.hash = '#row=q7'")
    browser.wait(f"{OPENED} === 'q7'")
    browser.run("location.hash = '#row=nobody/0'")
    browser.wait(f"{TEXT}.includes('no row nobody/0')")


def test_names_with_signs_and_names_that_repeat_have_links_too(browser: Browser, tmp_path: Path) -> None:
    odd = "a/b #c%?ü"
    page = write_page(tmp_path, talk(0, name=odd), talk(1, name="same"), talk(2, name="same"), talk(2, 1, name="same"))
    browser.open(page)
    links = browser.run("[...document.querySelectorAll('#list a')].map((one) => one.getAttribute('href'))")
    assert links == ["#row=a%2Fb%20%23c%25%3F%C3%BC/0", "#row=same/0/1", "#row=same/0/2", "#row=same/1"]
    for link, where in zip(links, ("place 0", "place 1", "place 2", "trial 1"), strict=True):
        browser.open(page + link)
        assert where in browser.run(TEXT)


def test_what_a_model_writes_is_shown_and_not_run(browser: Browser, tmp_path: Path) -> None:
    row = talk(0, name=HOSTILE, said=HOSTILE)
    row.termination = HOSTILE
    row.metrics = {HOSTILE: 1.0}
    row.request["task"][HOSTILE] = HOSTILE
    row.history[1].agent = HOSTILE
    row.history[1].data = {HOSTILE: {"deep": HOSTILE}}
    browser.open(write_page(tmp_path, row, talk(1)) + "#row=nobody")
    browser.run("document.querySelector('#list a').click()")
    browser.wait(f"{OPENED} !== undefined")
    browser.press("d")
    assert browser.run(TEXT).count(HOSTILE.removesuffix(" \u2028")) >= 8
    assert browser.run("window.hacked") is None
    # Nothing but the page's own: two scripts, no picture, no frame.
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.querySelectorAll('img, iframe, object, embed').length") == 0
    assert browser.complaints == []
    assert len(browser.requests) == 1


def test_the_policy_holds_where_the_escapes_would_fail(browser: Browser, tmp_path: Path) -> None:
    write_page(tmp_path, talk(0))
    whole = (tmp_path / "page.html").read_text()
    broken_page = tmp_path / "broken.html"
    attack = "<script>window.hacked = 2</script><img src=http://192.0.2.1/x onerror='window.hacked = 3'>"
    broken_page.write_text(whole.replace("<main>", f"{attack}<main>"))
    browser.open(broken_page.as_uri())
    assert browser.run("window.hacked") is None
    assert browser.run(OPENED) == "q0"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)


def test_the_keyboard_is_enough(browser: Browser, page: str) -> None:
    browser.open(page)
    for key, row in (("j", "q1"), ("j", "q2"), ("k", "q1")):
        browser.press(key)
        assert browser.run(OPENED) == row
    assert browser.run("location.hash") == "#row=q1/0"
    browser.press("]")
    assert browser.run(LISTED)[0] == "q50"
    browser.run("document.querySelector('#list a').focus()")
    browser.press("Enter")
    browser.wait(f"{OPENED} === 'q50'")
    assert browser.run("document.activeElement.id") == "conversation"
    assert browser.run("document.querySelectorAll('#conversation details[open]').length") == 0
    browser.press("d")
    assert browser.run("document.querySelectorAll('#conversation details[open]').length") > 0
    assert browser.run("document.querySelectorAll('#conversation details:not([open])').length") == 0
    assert "replayed" in browser.run(TEXT)
    browser.press("/")
    browser.type("j")
    assert browser.run(OPENED) == "q50"


def test_every_field_and_button_has_a_name(browser: Browser, page: str) -> None:
    browser.open(page)
    nameless = "[...document.querySelectorAll('button, input, select, a')].filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim())).length"
    assert browser.run(nameless) == 0


def test_light_and_dark_differ_and_a_small_screen_holds_it(browser: Browser, page: str) -> None:
    browser.open(page)
    seen = {}
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        seen[scheme] = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.prefer("light")
    assert seen["light"] != seen["dark"]
    browser.resize(390, 800)
    wide = browser.run("document.documentElement.scrollWidth")
    browser.resize(1300, 900)
    assert wide <= 390


def test_a_plain_pipeline_s_rows_are_conversations_too(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_page(tmp_path, plain(0, "Paris", "Rome"), plain(1)))
    text = browser.run(TEXT)
    assert re.search(r"system\s*Be brief\.\s*user\s*Question 0\?", text)
    assert re.search(r"answer 2 of 2\s*stop\s*Rome", text)
    assert "1 (Paris), 0 (Rome)" in text
    assert browser.complaints == []


def test_thousands_of_rows_stay_quick(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_page(tmp_path, *(talk(index, said=f"Word {index}. " * 100) for index in range(2000))))
    browser.run("document.getElementById('query').value = 'word 1234.'")
    took_ms = browser.run(
        "(() => { const from = performance.now(); document.getElementById('order').dispatchEvent(new Event('input')); return performance.now() - from; })()"
    )
    assert browser.run(LISTED) == ["q1234"]
    assert browser.run("document.querySelectorAll('#list li').length") == 1
    assert took_ms < 3000
