"""The leash itself: what a page does wrong is seen."""
from __future__ import annotations

import pytest
from browser import Browser, needs_chromium

pytestmark = needs_chromium
PAGE = """<!doctype html><meta charset="utf-8"><title>page</title><link rel="icon" href="data:,"><button id="b">b</button><input id="i">
<script>
window.clicked = 0; window.keys = [];
document.querySelector("#b").onclick = () => { clicked += 1; };
addEventListener("keydown", (e) => keys.push(e.key));
</script>"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser, tmp_path):
    (tmp_path / "page.html").write_text(PAGE)
    browser.open((tmp_path / "page.html").as_uri())
    browser.messages.clear()
    browser.requests.clear()
    return browser


def test_a_quiet_page(page):
    page.click("#b")
    page.press("ArrowLeft")
    page.press("a")
    page.evaluate("document.querySelector('#i').focus()")
    page.type("text")
    assert page.evaluate("[clicked, keys, document.querySelector('#i').value, document.title]") == [1, ["ArrowLeft", "a"], "text", "page"]
    assert page.complaints == [] and page.requests == [] and page.dialogs == []
    assert page.picture("leash").startswith(b"\x89PNG")


@pytest.mark.parametrize(("code", "said"), [("console.error('one', 2)", "one 2"), ("setTimeout(() => nothing.here)", "ReferenceError"),
                                            ("console.warn('careful')", "careful")])
def test_complaints_are_seen(page, code, said):
    page.evaluate(f"({code}, new Promise((done) => setTimeout(done, 20)))")
    assert len(page.complaints) == 1 and said in page.complaints[0]


def test_it_gets_nowhere_and_says_where_it_wanted_to(page):
    assert page.evaluate("fetch('http://example.org/x').then(() => 'there', () => 'nowhere')") == "nowhere"
    assert page.outside() == ["http://example.org/x"] and any("ERR_NAME_NOT_RESOLVED" in text for text in page.complaints)


def test_dialogs_are_seen_and_dismissed(page):
    assert page.evaluate("confirm('sure?')") is False
    assert page.dialogs == ["sure?"]


def test_the_scheme(page):
    for scheme in ("dark", "light"):
        page.prefer(scheme)
        assert page.evaluate(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
