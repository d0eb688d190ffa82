"""The replay page in a browser: clicked through, in light and dark, with texts that would like to be more than text."""
from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, needs_chromium

from llada_native import Trace, replay
from llada_native.pieces import Pieces
from llada_native.trace import REVEAL, Draft, Forward, Took, Write

pytestmark = needs_chromium
PROMPT = "Write a short story about a fox."
TEXTS = "[...document.querySelectorAll('.run[data-run=\"0\"] .text .cell')].map((c) => c.textContent)"
STEP = "Number(document.querySelector('#scrub').value)"
INK = ("[...document.querySelectorAll('main *, header *, footer *')].filter((e) => e.checkVisibility() && e.childElementCount === 0 && "
       "e.textContent.trim() && !e.closest('svg, option, .mask, .cell.after, kbd')).map((e) => [e.className || e.tagName, "
       "getComputedStyle(e).color, (function up(n) { const c = getComputedStyle(n).backgroundColor; "
       "return c === 'rgba(0, 0, 0, 0)' && n.parentElement ? up(n.parentElement) : c; })(e), getComputedStyle(e).fontSize])")
MARKUP = "document.querySelectorAll('script, style, img, svg[onload], iframe, base, link, form, a, template, math').length"
# What a prompt or an answer may try: every one would show itself by `bad`, a dialog, an element or a request.
HOSTILE = [
    "<script>bad = 1</script>", "</script><script>bad = 1</script>", "<img src=x onerror='bad = 1'>",
    "<svg onload='bad = 1'>", "\"><iframe srcdoc=\"<script>parent.bad = 1</script>\">", "' onmouseover='bad = 1' x='",
    "javascript:bad=1", "<!--", "--><script>bad=1//", "]]><script>bad=1</script>",
    "{{constructor.constructor('bad=1')()}}", "${bad = 1}", "<style>*{display:none}</style>", "</style>",
    "<base href='http://example.org'>", "<link rel=stylesheet href=http://example.org/x.css>",
    "<meta http-equiv=refresh content=0>", "&lt;script&gt;bad=1&lt;/script&gt;",
    "\\u003cscript\\u003ebad=1\\u003c/script\\u003e", "\x00<script>bad=1</script>", "\u2028bad=1\u2029",
    "\u202egnp.exe\u202c", "\u2067\u202b<b>\u2069", "\ud800", "\udfff<script>bad=1</script>", "\ufeff",
    "a\u0301\u0302\u0303", "\u0301", "\t", "\n", "\r\n", " ", "שלום", "مرحبا", "👩\u200d👩\u200d👧",
    "<a href=http://example.org>x</a>", "<form action=http://example.org><button>x", "__proto__", "constructor",
    "<template><script>bad=1</script></template>", "<math><mtext></mtext><script>bad=1</script>",
]


@pytest.fixture(scope="module")
def browser():
    with Browser(1280, 1000) as browser:
        yield browser


@pytest.fixture
def opened(browser, tmp_path):
    """A function that shows runs. At the end the page must not have complained, nor asked for anything but itself."""
    def show(runs, **arguments):
        replay.save_html(runs, tmp_path / "run.html", **arguments)
        browser.messages.clear()
        browser.requests.clear()
        browser.dialogs.clear()
        browser.open((tmp_path / "run.html").as_uri())
        return browser

    browser.resize(1280, 1000)
    browser.prefer("light")
    yield show
    assert browser.complaints == [] and browser.dialogs == []
    assert set(browser.requests) <= {(tmp_path / "run.html").as_uri()}


@pytest.fixture(scope="module")
def story(demo):
    return demo.generate(PROMPT, drafts=True)


@pytest.fixture(scope="module")
def fast(demo):
    return demo.generate(PROMPT, preset="fast", drafts=True)


def scrub(browser, step):
    browser.evaluate(f"(() => {{ const s = document.querySelector('#scrub'); s.value = {step}; s.dispatchEvent(new Event('input')); }})()")


def shown(out, forward, masks="░"):
    """What the cells should say after a pass: token by token, masks and end tokens by their signs."""
    pieces, trace = out.trace.pieces, out.trace
    return [masks if t == trace.mask_id else "⊣" if t in trace.end_ids else pieces.texts[t] for t in trace.answer(0, forward).tolist()]


def test_every_step_shows_the_canvas_of_the_trace(opened, story):
    page = opened(story)
    assert page.evaluate(STEP) == story.n_forward
    for step in (0, 1, 2, 17, 31, 32, 33, 63, 64, 5):
        scrub(page, step)
        assert [re.sub("░+", "░", text) for text in page.evaluate(TEXTS)] == shown(story, step - 1)
        new = page.evaluate("[...document.querySelectorAll('.text .cell.new')].map((c) => Number(c.dataset.cell))")
        assert new == sorted(story.trace.written(0, step - 1)[0] - story.prompt_lengths[0] if step else [])
        assert page.evaluate("document.querySelector('#where').textContent") == f"pass {step} of 64"


def test_states_differ_by_more_than_colour(opened, story):
    page = opened(story)
    scrub(page, 40)
    looks = page.evaluate("""Object.fromEntries([["mask", ".mask"], ["new", ".new"], ["settled", ".cell:not(.mask, .new, .after, .end)"]]
        .map(([name, query]) => [name, document.querySelector(".text " + query)]).map(([name, e]) => [name, [e.textContent.includes("░"),
        getComputedStyle(e).fontWeight, getComputedStyle(e).textDecorationLine]]))""")
    assert looks["mask"][0] and not looks["new"][0] and looks["new"][1] == "700" and looks["settled"][1] == "400"
    scrub(page, 64)
    after = page.evaluate("[...document.querySelectorAll('.text .after')].map((c) => Number(c.dataset.cell))")
    assert after == list(range(story.answer_lengths[0] + 1, 64)), "all behind the first end token"
    assert page.evaluate("getComputedStyle(document.querySelector('.states .after')).textDecorationLine") == "line-through"
    says = page.evaluate("[...document.querySelectorAll('.text .cell')].map((c) => c.getAttribute('aria-label'))")
    assert says[0] == "position 1: O, settled" and says[-1].endswith("after the end")


def test_keyboard(opened, story):
    page = opened(story)
    for key, step in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 64), ("ArrowRight", 64),
                      ("ArrowLeft", 63)):
        page.press(key)
        assert page.evaluate(STEP) == step
    page.press("h")
    assert page.evaluate("document.querySelector('#show-order').getAttribute('aria-pressed')") == "true"
    page.press("g")
    assert page.evaluate("document.querySelector('#guesses').getAttribute('aria-pressed')") == "true"
    page.press("h")
    page.press("g")
    for control in page.evaluate("[...document.querySelectorAll('button, input, select, summary')].filter((e) => e.checkVisibility())"
                                 ".map((e) => e.getAttribute('aria-label') || e.textContent || e.labels?.[0]?.textContent || '')"):
        assert control.strip(), "a control without a name"
    stops = page.evaluate("[...document.querySelectorAll('.text .cell')].filter((c) => c.tabIndex === 0).length")
    assert stops == 1, "one stop of the tab key for the whole text"


def test_play_and_pause(opened, story):
    page = opened(story)
    page.press("Home")
    page.evaluate("document.querySelector('#speed').value = '60'")
    page.press(" ")
    page.wait(f"{STEP} > 3")
    page.press(" ")
    stopped = page.evaluate(STEP)
    assert 3 < stopped < 64 and page.evaluate(f"new Promise((done) => setTimeout(() => done({STEP}), 200))") == stopped
    page.click("#play")
    page.wait(f"{STEP} === 64 && !document.body.classList.contains('playing')")
    page.evaluate("document.querySelector('#speed').value = 'real'")
    page.click("#play")  # from the start again
    page.wait(f"{STEP} === 64 && !document.body.classList.contains('playing')")
    page.click("#back")
    assert page.evaluate(STEP) == 63
    page.click("#on")
    assert page.evaluate(STEP) == 64


def test_a_token_on_click(opened, story):
    """Its confidence, when it was written, and what else was predicted: the numbers of the trace."""
    page, trace = opened(story), story.trace
    drafts = trace.drafts
    last = trace.answer(0, len(trace) - 1)
    rivals = {}
    for _, _, position, token, confidence in drafts.tolist():
        cell = position - story.prompt_lengths[0]
        if token != last[cell]:
            rivals.setdefault(cell, {}).setdefault(token, []).append(confidence)
    cell = max(rivals, key=lambda c: len(rivals[c]))
    scrub(page, 30)
    page.click(f".text .cell[data-cell='{cell}']")
    assert page.evaluate("!document.querySelector('.token').hidden")
    text = page.evaluate("document.querySelector('.token').innerText")
    assert f"position {cell + 1} of 64" in text
    [write] = [w for w in trace.writes if w["position"] - story.prompt_lengths[0] == cell]
    assert f"written, pass {write['forward'] + 1}" in text and f"{write['confidence']:.3f}" in text
    rows = page.evaluate("[...document.querySelectorAll('.token table:last-of-type tr')]"
                         ".map((row) => [...row.cells].map((c) => c.textContent))")
    counts = sorted((len(seen) for seen in rivals[cell].values()), reverse=True)[:8]
    assert [int(row[1].split()[0]) for row in rows] == counts
    for row in rows:
        [seen] = [seen for token, seen in rivals[cell].items() if trace.pieces.texts[token].strip() == row[0].strip().strip("␣")] or [None]
        assert seen is None or abs(float(row[2].removeprefix("up to ")) - max(seen)) < 0.02
    path = page.evaluate("document.querySelector('.curve .run-of').getAttribute('d')")
    looked = np.count_nonzero(drafts["position"] - story.prompt_lengths[0] == cell)
    assert len(re.findall("[ML]", path)) == looked
    page.press("ArrowDown")
    assert f"position {cell + 2} of 64" in page.evaluate("document.querySelector('.token').innerText")
    page.picture("replay-token-light", whole=True)
    page.press("Escape")
    assert page.evaluate("document.querySelector('.token').hidden")


def test_the_picture_of_positions_and_passes(opened, fast):
    """A click goes to its pass and its token; bars begin in the colour of their pass."""
    page = opened(fast)
    x, y, width, height = page.evaluate("""(async () => {
        const c = document.querySelector(".raster canvas"), frame = () => new Promise(requestAnimationFrame);
        c.scrollIntoView({block: "center", behavior: "instant"});
        for (let seen = null, at; seen !== at; await frame()) seen = at, at = c.getBoundingClientRect().y;  // it may move yet
        const b = c.getBoundingClientRect();
        return [b.x, b.y, b.width, b.height];
    })()""")
    page.click_at(x + width * 2.5 / (fast.n_forward + 1), y + 9 + (height - 9) * 10.5 / 64)
    assert page.evaluate(STEP) == 2
    assert "position 11 of 64" in page.evaluate("document.querySelector('.token').innerText")
    colours = page.evaluate("""(() => { const c = document.querySelector(".raster canvas");
        const {data} = c.getContext("2d").getImageData(0, 0, c.width, c.height);
        return [1, 2, 3, 4, 5].map((pass) => Array.from({length: 64}, (_, cell) => {
            const y = 9 + Math.round((cell + .3) * (c.height - 9) / 64), x = Math.round((pass + .5) * c.width / 6);
            return data.slice(4 * (y * c.width + x), 4 * (y * c.width + x) + 3).join(" ");
        })); })()""")
    written = np.full(64, 99)
    for forward, _, kind, position, _, _ in fast.trace.writes.tolist():
        if kind == REVEAL:
            written[position - fast.prompt_lengths[0]] = forward
    first = int(np.flatnonzero(written == 0)[0])
    for cell in np.flatnonzero(written < 99):
        for forward in range(fast.n_forward):
            bar = colours[forward][cell]
            assert (bar == colours[int(written[cell])][cell]) == (forward >= written[cell]), (cell, forward)
            assert (bar == colours[0][first]) == (written[cell] == 0), "a colour of its own for each pass"
    assert "1 of 5" in page.evaluate("document.querySelector('figcaption').textContent")


def test_order_and_guesses(opened, story):
    page = opened(story)
    scrub(page, 20)
    page.click("#show-order")
    tints = page.evaluate("[...document.querySelectorAll('.text .tinted')].map((c) => getComputedStyle(c).backgroundColor)")
    assert len(tints) == 20 == len(set(tints))
    assert page.evaluate("document.querySelector('.ramp').checkVisibility()")
    page.click("#guesses")
    guessed = page.evaluate("[...document.querySelectorAll('.text .guess')].map((c) => [Number(c.dataset.cell), c.textContent])")
    drafts = story.trace.drafts
    for step in range(1, 32):
        scrub(page, step)
        mine = {p - story.prompt_lengths[0]: t for f, _, p, t, _ in drafts.tolist() if f == step - 1}
        seen = page.evaluate("[...document.querySelectorAll('.text .guess')].map((c) => [Number(c.dataset.cell), c.textContent])")
        assert seen and all(text == "⊣" or story.trace.pieces.texts[mine[cell]].strip() == text.strip("␣ ") for cell, text in seen)
    scrub(page, 20)
    now = {int(p) - story.prompt_lengths[0]: int(t) for f, _, p, t, _ in drafts.tolist() if f == 19}
    masked = np.flatnonzero(story.trace.answer(0, 19) == story.trace.mask_id).tolist()
    assert [cell for cell, _ in guessed] == [cell for cell in masked if cell in now]
    for cell, text in guessed:
        assert text == "⊣" or story.trace.pieces.texts[now[cell]].strip() in text
    page.picture("replay-order-light", whole=True)
    page.click("#show-text")
    assert page.evaluate("document.querySelectorAll('.tinted').length") == 0


def test_two_runs_share_a_clock(opened, story, fast):
    page = opened([story, fast], names=["reference", "fast"])
    assert page.evaluate("[...document.querySelectorAll('h2')].map((h) => h.textContent)") == ["reference", "fast"]
    left = "[...document.querySelectorAll('.run')].map((r) => r.querySelectorAll('.text .mask').length)"
    scrub(page, 3)
    assert page.evaluate(left) == [61, int(np.count_nonzero(fast.trace.answer(0, 2) == fast.trace.mask_id))]
    page.click("#clock")
    moments = sorted({0.0, *(round(float(s), 4) for out in (story, fast) for s in out.trace.seconds)})
    for index in (0, 3, len(moments) // 2, len(moments) - 1):
        scrub(page, index)
        done = [int((out.trace.seconds.round(4) <= moments[index]).sum()) for out in (story, fast)]
        wanted = [int(np.count_nonzero(out.trace.answer(0, passes - 1) == out.trace.mask_id))
                  for out, passes in zip((story, fast), done, strict=True)]
        assert page.evaluate(left) == wanted
    page.click("#clock")
    scrub(page, 20)
    page.picture("replay-two-light", whole=True)
    page.click("#theme")
    page.picture("replay-two-dark", whole=True)


def test_light_and_dark(opened, browser, story):
    """As the system has it, and the other at a click; text stands out by WCAG's 4.5 in both."""
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        page = opened(story)
        scrub(page, 30)
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (luminance(ground) > 0.5) == (scheme == "light")
        for view in ("#show-text", "#show-order"):
            page.click(view)
            for name, ink, behind, _ in page.evaluate(INK):
                assert contrast(ink, behind) >= 4.5, (scheme, view, name, ink, behind)
        page.click("#show-text")
        page.picture(f"replay-{scheme}", whole=True)
        page.click("#theme")
        assert (luminance(page.evaluate("getComputedStyle(document.documentElement).backgroundColor")) > 0.5) == (scheme == "dark")


def luminance(colour):
    """Relative luminance of WCAG 2."""
    channels = [float(c) for c in re.findall(r"[\d.]+", colour)[:3]]
    scale = 1 if colour.startswith("color(") else 255
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / scale for x in channels))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_narrow_window(opened, story, fast):
    page = opened([story, fast])
    for width in (320, 390, 768):
        page.resize(width, 800)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.picture(f"replay-{width}")


def test_several_prompts(opened, demo):
    out = demo.generate([PROMPT, "What is 17 plus 25?"], gen_length=32)
    page = opened(out)
    page.evaluate("(() => { const s = document.querySelector('.which select'); s.value = 1; s.dispatchEvent(new Event('change')); })()")
    assert "".join(page.evaluate(TEXTS)).replace("␣", " ").startswith(out.text[1])
    assert page.evaluate("document.querySelector('.prompt bdi').textContent").strip() == "user What is 17 plus 25? assistant"
    page.evaluate("document.querySelectorAll('.text .cell')[0].click()")
    assert "drafts=True" in page.evaluate("document.querySelector('.token').innerText")


def test_editors_and_growth(opened, demo):
    edited = demo.generate(PROMPT, gen_length=32, block_length=16, selector="threshold:tau=0.3", editor="token_edit:tau=0.4")
    page = opened(edited)
    for step in range(edited.n_forward + 1):
        scrub(page, step)
        changed = page.evaluate("[...document.querySelectorAll('.text .edited.new')].map((c) => Number(c.dataset.cell))")
        writes = edited.trace.writes
        assert changed == sorted(writes["position"][(writes["forward"] == step - 1) & (writes["kind"] == 1)] - edited.prompt_lengths[0])
    assert "may change yet" in page.evaluate("document.querySelector('.states').textContent")
    taken = demo.generate(PROMPT, gen_length=32, block_length=16, editor="remask:tokens=2")
    page = opened(taken)
    backs = taken.trace.writes[taken.trace.writes["kind"] == 2]
    scrub(page, int(backs["forward"][0]) + 1)
    assert page.evaluate("document.querySelectorAll('.text .taken').length") == np.count_nonzero(backs["forward"] == backs["forward"][0])
    grown = demo.generate("Repeat these words: red cat sun moon tree.", gen_length="auto")
    page = opened(grown)
    scrub(page, 0)
    assert page.evaluate("[...document.querySelectorAll('.text .cell')].filter((c) => c.checkVisibility()).length") == len(
        grown.trace.answer(0, -1))


def hostile_run():
    """Every text of the corpus as a token of the prompt, of the answer, and as a guess."""
    n, mask = len(HOSTILE), len(HOSTILE)
    trace = Trace([np.r_[np.arange(n), np.full(n, mask)].astype(np.int32)], [n], mask)
    trace._pieces = Pieces({**dict(enumerate(HOSTILE)), mask: "<|mask|>"}, frozenset({mask, 3}), {(5, 6): HOSTILE[2]})
    trace.end_ids, trace.method = [n - 1], HOSTILE[1]
    for step in range(n):
        open_ = np.arange(n + step, 2 * n, dtype=np.int32)
        trace.forwards.append(Forward([Took(0, 2 * n, len(open_), True, n, 2 * n)], [
            (0, Draft(open_, ((open_ + step) % n).astype(np.int32), np.full(len(open_), 0.5, np.float32)))],
            [(0, Write(REVEAL, np.array([n + step]), np.array([step], np.int32), np.array([0.9])))], float(step + 1)))
    return trace


@pytest.mark.parametrize("notebook", [False, True])
def test_nothing_of_a_text_is_run(opened, browser, tmp_path, notebook, demo):
    trace, name = hostile_run(), "".join(HOSTILE[:20])
    if notebook:
        out = demo.generate(PROMPT, gen_length=8)
        object.__setattr__(out, "trace", trace)
        (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8><body>{out._repr_html_()}", "utf-8", "surrogatepass")
        page = browser
        page.open((tmp_path / "notebook.html").as_uri())
        assert page.evaluate("document.querySelectorAll('*').length") == 5  # html, head, meta, body, iframe
        assert page.evaluate("typeof bad === 'undefined'")
        browser.requests.clear()
        return
    page = opened(trace, names=[name])
    assert page.evaluate(MARKUP) == 4, "its two scripts, its style and its template"
    for step in (0, len(HOSTILE) // 2, len(HOSTILE)):
        scrub(page, step)
        page.press("g")
        page.press("h")
        for cell in range(len(HOSTILE)):
            page.evaluate(f"document.querySelectorAll('.text .cell')[{cell}].click()")
        assert page.evaluate("typeof bad === 'undefined'")
        assert page.evaluate(MARKUP) == 4
    assert page.evaluate("document.title").startswith("Replay")
    assert page.evaluate("document.querySelectorAll('.text [style*=\"display\"], .text script').length") == 0
    page.click("#show-text")
    page.picture("replay-hostile", whole=True)


def test_what_has_no_shape_gets_one(opened):
    page = opened(hostile_run())
    texts = dict(zip(HOSTILE, page.evaluate(TEXTS), strict=True))
    assert texts["\x00<script>bad=1</script>"] == "␀<script>bad=1</script>"
    assert texts["\u202egnp.exe\u202c"] == "\u2039202E\u203agnp.exe\u2039202C\u203a" and texts["\ud800"] == "\ufffd"
    assert texts["\n"] == texts["\r\n"] == "↵" and texts["\t"] == "⇥" and texts[" "] == "␣" and texts["\u0301"] == "◌\u0301"
    assert texts["👩\u200d👩\u200d👧"] == "👩\u200d👩\u200d👧" and texts["שלום"] == "שלום" and texts["\ufeff"] == "\u2039FEFF\u203a"
    spots = page.evaluate("[...document.querySelectorAll('.text .cell')].map((c) => c.getBoundingClientRect()).map((b) => [b.top, b.left])")
    assert spots == sorted(spots), "text from right to left stays in its cell"


def test_the_policy_holds(opened, browser, story):
    """A script, a style or a request that came in after all would not run. The complaints are those that are wanted here."""
    page = opened(story)
    page.evaluate("""(() => { const s = document.createElement("script"); s.textContent = "window.bad = 1"; document.body.append(s);
        document.body.insertAdjacentHTML("beforeend", "<p id=p style='color: red' onclick='bad = 1'>x</p><img src='http://example.org/x.png'>");
        document.querySelector("#p").click(); })()""")
    assert page.evaluate("typeof bad === 'undefined'")
    assert page.evaluate("fetch('http://example.org').then(() => 1, () => 0)") == 0
    assert page.evaluate("getComputedStyle(document.querySelector('#p')).color") != "rgb(255, 0, 0)"
    assert page.outside() == [] and len(page.complaints) >= 4 and all("Content Security Policy" in text for text in page.complaints)
    browser.messages.clear()


def test_in_a_notebook_the_frame_plays(browser, demo, tmp_path):
    """Sandboxed: it has no origin of its own, and works."""
    out = demo.generate(PROMPT, gen_length=16)
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8><body>{out._repr_html_()}", "utf-8")
    browser.messages.clear()
    browser.requests.clear()
    browser.open((tmp_path / "notebook.html").as_uri())
    page = browser.evaluate("document.querySelector('iframe').srcdoc")
    assert html.unescape(re.search('srcdoc="(.*)"', out._repr_html_(), re.S)[1]) == page
    assert browser.evaluate("document.querySelector('iframe').contentDocument") is None
    browser.wait("document.querySelector('iframe').getBoundingClientRect().height > 500")
    assert browser.complaints == [] and browser.outside() == []
    assert len(browser.picture("replay-notebook")) > 20_000, "an empty frame is a small picture"


def machado(severity):
    """Colour vision without one kind of cone (Machado et al., 2009), for linear RGB; severity 1."""
    return {"protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
            "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
            "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]}[severity]


@pytest.mark.parametrize("kind", ["protan", "deutan", "tritan", None])
def test_colours_of_the_order_are_told_apart(kind):
    """By their lightness alone, with any kind of colour vision: it rises from each tenth of the ramp to the next by 4 or more."""
    script = (Path(replay.__file__).parent / "page.js").read_text("utf-8")
    stops = np.array([[int(h[i:i + 2], 16) / 255 for i in (1, 3, 5)] for h in json.loads(re.search(r"const RAMP = (\[.*?\]);", script)[1])])
    shares = np.linspace(0, 1, 11)
    colours = np.stack([np.interp(shares, np.linspace(0, 1, len(stops)), stops[:, c]) for c in range(3)], 1)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    if kind:
        linear = np.clip(linear @ np.array(machado(kind)).T, 0, 1)
    y = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)  # L* of CIELAB
    assert (np.diff(lightness) >= 4).all(), lightness
