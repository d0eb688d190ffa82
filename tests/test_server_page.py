"""The page of a running server in a real browser: type, watch, stop, see the replay; nothing of a text is ever markup."""
from __future__ import annotations

import backends
import pytest
import servers
from browser import Browser, needs_chromium

from llada_native import LLaDAForCausalLM
from llada_native.server import app

pytestmark = needs_chromium
INJECTIONS = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</span><svg onload=alert(1)>", "javascript:alert(1)",
              "\"><iframe srcdoc='<script>parent.alert(1)</script>'>", "&lt;b&gt;<b>bold</b>", "<style>body{display:none}</style>",
              "data: {\"choices\": []}\n\ndata: [DONE]\n\n"]


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def gated():
    with LLaDAForCausalLM.from_pretrained() as model:
        model._backend = gate = backends.Gate(model._backend)
        with servers.running(model, grace=0.5) as server:
            yield server, gate
            gate.unlock()


@pytest.fixture(scope="module")
def server():
    with LLaDAForCausalLM.from_pretrained() as model, servers.running(model) as server:
        yield server


def fill(browser, selector, text):
    browser.evaluate(f"document.querySelector('{selector}').value = ''")
    browser.evaluate(f"document.querySelector('{selector}').focus()")
    browser.type(text)


def status(browser):
    return browser.evaluate("document.querySelector('#status').textContent")


def answer(browser):
    return browser.evaluate("document.querySelector('#answer').textContent")


def done(browser):
    browser.wait("document.querySelector('#status').textContent.startsWith('Done in')", servers.PATIENCE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_appear_in_place(browser, gated, scheme):
    """Pass by pass: guesses in the place of masks, new tokens, then the answer; by the keyboard alone."""
    server, gate = gated
    gate.open = False
    browser.prefer(scheme)
    browser.open(server.address)
    browser.wait("document.querySelector('#model').textContent.startsWith('demo,')", servers.PATIENCE)
    assert browser.evaluate("document.activeElement.id") == "prompt"
    fill(browser, "#prompt", "What is 17 plus 25?")
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.id") == "go"
    browser.press("Enter")
    fresh = []
    for number in range(1, 21):
        gate.arrive()
        gate.let()
        browser.wait(f"document.querySelector('#status').textContent.startsWith('Pass {number},')", servers.PATIENCE)
        states = browser.evaluate("[...document.querySelectorAll('#answer .cell')].map(c => c.dataset.state)")
        assert len(states) == 64 and sum(s != "0" for s in states) >= number
        fresh.append(browser.evaluate("document.querySelectorAll('#answer .new').length"))
    assert set(fresh) == {0, 1}  # what is behind the end of the answer is not shown
    browser.picture(f"server-{scheme}-running")
    gate.unlock()
    done(browser)
    assert answer(browser) == "17 + 25 = 42" and "complete" in status(browser)
    assert browser.evaluate("document.querySelector('#bar').value") == 1
    browser.picture(f"server-{scheme}")
    colours = browser.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (luminance(colours[0]) > luminance(colours[1])) == (scheme == "light")
    assert browser.complaints == [] and browser.outside() == []


def luminance(colour):
    return sum(int(n) for n in colour.removeprefix("rgb(").removesuffix(")").split(","))


def test_settings_reach_the_server(browser, server, demo):
    browser.open(server.address)
    browser.click("summary")
    for name, value in (("max_tokens", "32"), ("block_length", "16"), ("temperature", "0.8"), ("seed", "3"), ("system", "Be brief.")):
        fill(browser, f"[name={name}]", value)
    browser.evaluate("document.querySelector('[name=preset]').value = 'balanced'")
    browser.evaluate("document.querySelector('#prompt').focus()")
    browser.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true}))")
    done(browser)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sort these numbers: 31, 7, 52, 12."}]
    assert answer(browser) == demo.generate(messages, gen_length=32, block_length=16, temperature=0.8, seed=3, preset="balanced").text[0]
    fill(browser, "[name=max_tokens]", "5000")
    browser.click("#go")
    browser.wait("document.querySelector('#status.wrong') !== null", servers.PATIENCE)
    assert "max_tokens: expected 1 to 1024, found 5000" in status(browser)
    fill(browser, "[name=seed]", "9007199254740993")  # which JavaScript knows as another number
    browser.click("#go")
    browser.wait("document.querySelector('#status').textContent.startsWith('seed: expected at most 9007199254740991')", servers.PATIENCE)
    assert browser.outside() == []


def test_presets_are_those_of_the_model(browser, server):
    browser.open(server.address)
    browser.wait("document.querySelector('#model').textContent.startsWith('demo,')", servers.PATIENCE)
    offered = browser.evaluate("[...document.querySelector('[name=preset]').options].map(o => o.value)")
    assert offered == ["", "reference", "balanced", "fast"]


def test_stop_stops_the_work(browser, gated):
    server, gate = gated
    gate.open = False
    browser.open(server.address)
    browser.click("#go")
    gate.arrive()
    browser.press("Escape")
    browser.wait("document.querySelector('#status').textContent === 'Stopped.'", servers.PATIENCE)
    gate.unlock()
    browser.wait("!document.querySelector('#go').disabled", servers.PATIENCE)
    while server.scheduler.running:
        pass
    assert server.scheduler.counts["cancelled"] == 1


def test_a_key(browser):
    with LLaDAForCausalLM.from_pretrained() as model, servers.running(model, api_key="secret") as server:
        browser.open(server.address)
        browser.wait("document.querySelector('#status.wrong') !== null", servers.PATIENCE)
        assert "Bearer KEY" in status(browser)
        browser.click("summary")
        fill(browser, "[name=key]", "secret")
        browser.click("#go")
        done(browser)
        assert "secret" not in "".join(browser.requests)


@pytest.mark.parametrize("text", INJECTIONS)
def test_nothing_is_markup(browser, server, monkeypatch, text):
    """In the prompt, in drafts and in the answer."""
    tokenizer = server.scheduler.model.tokenizer
    monkeypatch.setattr(tokenizer, "decode", lambda ids, skip_special_tokens=True: text if len(ids) else "")
    monkeypatch.setattr(app, "Pieces", lambda _: None)
    browser.messages.clear()
    browser.open(server.address)
    fill(browser, "#prompt", text)
    browser.click("#go")
    done(browser)
    assert answer(browser) == text
    assert browser.evaluate("document.querySelectorAll('#answer *:not(span), script:not([src]), iframe, img, style').length") == 0
    assert browser.dialogs == [] and browser.complaints == [] and browser.outside() == []


def test_a_replay_is_a_stranger(browser, server, monkeypatch):
    """The last answer's is linked and opens; to the server what is on it is a stranger."""
    page = ("<!doctype html><title>replay</title><p id=a></p><script>document.querySelector('#a').textContent = origin; "
            "fetch('/health').catch(() => document.querySelector('#a').textContent += ' refused')</script>")
    monkeypatch.setattr(app, "replay_page", lambda result: page)
    browser.open(server.address)
    assert browser.evaluate("document.querySelector('#replay').hidden")
    browser.click("#go")
    done(browser)
    assert not browser.evaluate("document.querySelector('#replay').hidden")
    browser.open(browser.evaluate("document.querySelector('#replay').href"))
    browser.wait("document.querySelector('#a').textContent === 'null refused'", servers.PATIENCE)


def test_the_replay(browser, server):
    """Clicked through as the server sends it, in its sandbox and under its policy: nothing of the page needs more."""
    browser.messages.clear()
    browser.requests.clear()
    browser.prefer("light")
    browser.open(server.address)
    browser.click("#go")
    done(browser)
    said = answer(browser)
    address = browser.evaluate("document.querySelector('#replay').href")
    browser.open(address)
    assert browser.evaluate("origin") == "null"
    last = int(browser.wait("document.querySelector('#scrub').max"))
    place = "Number(document.querySelector('#scrub').value)"
    texts = "[...document.querySelectorAll('.text .cell:not(.end, .after)')].map((c) => c.textContent).join('').replaceAll('\u2423', ' ')"
    assert last > 0 and browser.evaluate(place) == last and browser.evaluate(texts).strip() == said.strip()
    browser.press("Home")
    assert browser.evaluate(place) == 0 and set(browser.evaluate(texts)) == {"\u2591"}
    browser.click("#on")
    browser.click("#on")
    browser.click("#back")
    assert browser.evaluate(place) == 1
    browser.evaluate("document.querySelector('#speed').value = '60'")
    browser.click("#play")
    browser.wait(f"{place} === {last} && !document.body.classList.contains('playing')", servers.PATIENCE)
    browser.click(".text .cell[data-cell='2']")
    assert "position 3 of" in browser.evaluate("document.querySelector('.token').innerText")
    assert browser.evaluate("document.querySelector('.curve .run-of') !== null"), "drafts are kept"
    browser.click(".token .close")
    assert browser.evaluate("document.querySelector('.token').hidden")
    ink = "getComputedStyle(document.body).color"
    light = browser.evaluate(ink)
    for button in ("#guesses", "#show-order", "#theme"):
        browser.click(button)
    assert browser.evaluate("document.documentElement.dataset.theme") == "dark"
    assert luminance(light) < luminance(browser.evaluate(ink))
    assert browser.evaluate("document.querySelector('.text .tinted') !== null")
    browser.picture("server-replay")
    assert browser.complaints == [] and browser.dialogs == [] and browser.outside() == []
    assert browser.requests[-1] == address, "nothing more is asked for"


def test_a_narrow_window(browser, server):
    browser.resize(360, 700)
    browser.open(server.address)
    browser.wait("document.querySelector('#model').textContent !== ''", servers.PATIENCE)  # which moves what is below it
    browser.click("#go")
    done(browser)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    browser.picture("server-narrow")
    browser.resize(1200, 900)
