"""What a replay page is given, and how it is put together."""
from __future__ import annotations

import base64
import hashlib
import json
import pickle
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import folders
import numpy as np
import pytest

import llada_native
from llada_native import GenerationResult, LLaDAForCausalLM, Trace, cli, replay
from llada_native.pieces import Pieces
from llada_native.trace import EDIT, REVEAL, REVOKE, Forward, Growth, Took, Write

PROMPTS = ("What is 17 plus 25?", "Sort these numbers: 31, 7, 52, 12.")
METHODS = [
    {}, {"preset": "fast"}, {"cfg_scale": 0.5, "selector": "factor", "cache": "dual"}, {"remasking": "entropy"},
    {"selector": "threshold:tau=0.3", "editor": "token_edit:tau=0.4"}, {"editor": "remask:tokens=2"}, {"gen_length": "auto"},
    {"editor": "wino", "early_stop": True}, {"selector": "threshold", "canvas": "look_ahead"}, {"constraints": {0: "17", 9: "end"}},
    {"temperature": 1.0, "seed": 3},
]
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
SIZE = 200_000  # bytes of a page for 256 tokens in 256 passes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config = folders.config()
    return LLaDAForCausalLM(folders.write(tmp_path_factory.mktemp("replay"), config, folders.tensors(config)))


def told(page):
    """The record of a page."""
    return json.loads(re.search(r'<script type="application/json" id="record">(.*?)</script>', page, re.S)[1])["runs"]


def lengths(options):
    return options if "gen_length" in options else {"gen_length": 32, "block_length": 16, **options}


def canvas(run, request, step):
    """Text of every cell after so many steps, None before it is there: read as the page's script reads it, in a few lines."""
    cells = [run["mask"]] * request["cells"]
    given, writes = request["given"], request["writes"]
    for i in range(0, len(given), 2):
        cells[given[i]] = given[i + 1]
    for i in range(0, len(writes), 5):
        if writes[i] < step:
            cells[writes[i + 1]] = writes[i + 3]
    late = {cell: since for cell, since in request["born"]}
    return [None if late.get(cell, 0) > step else token for cell, token in enumerate(cells)]


def check(trace, run):
    """Every canvas on the way is the one of the trace."""
    texts = trace.pieces.texts
    assert {run["tokens"][i] for i in run["ends"]} == {texts.get(t, f"#{t}") for t in trace.end_ids} & set(run["tokens"])
    for r, request in enumerate(run["requests"]):
        for step, forward in enumerate([-1, *request["forwards"]]):
            wanted = [texts.get(t, f"#{t}") for t in trace.answer(r, forward).tolist()]
            found = [run["tokens"][t] for t in canvas(run, request, step) if t is not None]
            assert found == wanted, (r, step)
        passes = trace.passes[trace.passes["request"] == r]
        assert request["rows"] == passes["rows"].tolist() and request["full"] == "".join("01"[int(f)] for f in passes["full"])
        assert request["forwards"] == passes["forward"].tolist()


@pytest.mark.parametrize("options", METHODS, ids=repr)
def test_every_canvas_can_be_made_from_the_page(demo, options):
    out = demo.generate(PROMPTS, drafts=True, **lengths(options))
    [run] = told(replay.page(out))
    check(out.trace, run)
    assert (run["passes"], run["answered"], run["rows"]) == (out.n_forward, sum(out.answer_lengths), out.rows_computed)
    assert run["rows"] / run["answered"] == out.rows_per_token
    assert run["method"] == out.trace.method and len(run["requests"]) == len(PROMPTS)


def invented(seed):
    """A record of things that no model does: canvases that grow anywhere, tokens that come and go, requests that pause."""
    rng, mask = np.random.default_rng(seed), 99
    prompts = [4, 7]
    trace = Trace([np.r_[np.arange(n), np.full(5, mask)].astype(np.int32) for n in prompts], prompts, mask)
    sizes = [n + 5 for n in prompts]
    for number in range(30):
        forward = Forward(seconds=float(number + 1))
        for r in np.flatnonzero(rng.random(2) < 0.8).tolist():
            forward.passes.append(Took(r, sizes[r], 1, bool(rng.random() < 0.3), prompts[r], sizes[r]))
            for kind in (REVEAL, EDIT, REVOKE):
                where = np.flatnonzero(rng.random(sizes[r]) < 0.15)
                where = where[where >= prompts[r]]
                tokens = np.full(len(where), mask) if kind == REVOKE else rng.integers(0, 50, len(where))
                forward.events.append((r, Write(kind, where, tokens.astype(np.int32), rng.random(len(where)))))
            if rng.random() < 0.3:
                growth = Growth(int(rng.integers(prompts[r], sizes[r] + 1)), int(rng.integers(1, 4)))
                forward.events.append((r, growth))
                sizes[r] += growth.added
        trace.forwards.append(forward)
    return trace


@pytest.mark.parametrize("seed", range(10))
def test_canvases_that_grow_in_the_middle(seed):
    trace = invented(seed)
    [run] = told(replay.page(trace))
    assert all(request["born"] for request in run["requests"]) and len(trace.growths) > 3
    check(trace, run)


@pytest.mark.parametrize("options", [{}, {"preset": "fast"}, {"temperature": 1.0, "seed": 1}, {"remasking": "entropy"}], ids=repr)
def test_every_guess_is_on_the_page(demo, options):
    """At its pass and place, with its token, and its confidence to half a digit."""
    out = demo.generate(PROMPTS, drafts=True, **lengths(options))
    [run] = told(replay.page(out))
    drafts, (low, high) = out.trace.drafts, run["range"]
    assert len(drafts) == out.trace.passes["open"].sum() > 0
    seen = 0
    for r, request in enumerate(run["requests"]):
        mine = {(f, p): (t, c) for f, of, p, t, c in drafts.tolist() if of == r}
        width = request["width"]
        for cell, known in enumerate(request["guesses"]):
            if not known:
                continue
            first, levels, changes = known
            numbers = [sum(DIGITS.index(d) * 64 ** (width - 1 - k) for k, d in enumerate(changes[i:i + width]))
                       for i in range(0, len(changes), width)]
            for i, level in enumerate(levels):
                wanted = mine.pop((request["forwards"][first + i], cell + out.prompt_lengths[r]), None)
                assert (level == " ") == (wanted is None)
                if wanted is not None:
                    token = [numbers[k + 1] for k in range(0, len(numbers), 2) if numbers[k] <= first + i][-1]
                    assert run["tokens"][token] == out.trace.pieces.texts[wanted[0]]
                    assert abs(low + (high - low) * DIGITS.index(level) / 63 - wanted[1]) <= (high - low) / 126 + 1e-6
                    seen += 1
        assert not mine
    assert seen == len(drafts)


def test_confidences_that_are_no_number(demo):
    """An end token that has to wait has -inf in the order of entropies. JSON has no such number."""
    out = demo.generate(PROMPTS[0], remasking="entropy", confidence_eos_eot_inf=True, drafts=True)
    assert np.isneginf(out.trace.drafts["confidence"]).any()
    [run] = told(replay.page(out))
    assert np.isfinite(run["range"]).all() and run["range"][0] < 0
    with pytest.raises(ValueError, match="JSON"):
        replay._assembled({"runs": [float("inf")]})


def test_guesses_are_there_when_asked_for(demo):
    plain = demo.generate(PROMPTS[0], gen_length=16)
    assert len(plain.trace.drafts) == 0 and told(replay.page(plain))[0]["requests"][0]["guesses"] is None
    kept = demo.generate(PROMPTS[0], gen_length=16, drafts=True)
    assert told(replay.page(kept))[0]["requests"][0]["guesses"]
    assert told(replay.page(kept, drafts=False))[0]["requests"][0]["guesses"] is None
    assert np.array_equal(kept.sequences[0], plain.sequences[0])
    *_, step = demo.stream(PROMPTS[0], gen_length=16, drafts=True)
    assert np.array_equal(step.trace.drafts, kept.trace.drafts)
    infilled = demo.infill(["12 + 30 = ", 2, "."], drafts=True).trace
    assert len(infilled.drafts) == 3 and infilled.end_ids == []
    with pytest.raises(TypeError, match="drafts: expected True or False, found 'yes'"):
        demo.generate(PROMPTS[0], drafts="yes")


def test_blocks_of_the_page_are_those_of_the_run(demo):
    out = demo.generate(PROMPTS[0], gen_length=32, block_length=8)
    [run] = told(replay.page(out))
    blocks = np.array(run["requests"][0]["blocks"]).reshape(-1, 2)
    assert blocks.tolist() == [[step // 8 * 8, step // 8 * 8 + 8] for step in range(32)]


def test_what_an_editor_may_change_yet(demo):
    out = demo.generate(PROMPTS, gen_length=32, block_length=16, selector="threshold:tau=0.3", editor="token_edit:tau=0.4")
    [run] = told(replay.page(out))
    for r, request in enumerate(run["requests"]):
        for forward, begin in zip(request["forwards"], request["unsettled"], strict=True):
            settled = out.trace.settled(r, forward)
            assert (settled[begin:] == out.trace.mask_id).all()
            assert np.array_equal(settled[:begin], out.trace.answer(r, forward)[:begin])
    assert told(replay.page(demo.generate(PROMPTS[0], gen_length=8)))[0]["requests"][0]["unsettled"] is None


def test_masks_of_a_prompt_are_cells(demo):
    """The reference sampler fills them, so they are part of what happens."""
    prompt = [*demo.tokenizer.encode("What is 17"), demo.config.mask_token_id, *demo.tokenizer.encode(" 25?")]
    out = demo.generate([prompt], gen_length=8, chat=False)
    [run] = told(replay.page(out))
    request, first = run["requests"][0], len(demo.tokenizer.encode("What is 17"))
    assert out.sequences[0][first] != out.trace.mask_id
    assert request["cells"] == len(out.sequences[0]) - first
    for step, forward in enumerate([-1, *request["forwards"]]):
        assert [run["tokens"][t] for t in canvas(run, request, step)] == [
            out.trace.pieces.texts[t] for t in out.trace.canvas(0, forward)[first:].tolist()]


def test_a_run_that_has_not_begun():
    trace = Trace([np.array([1, 2, 9, 9, 3], np.int32)], [2], 9)
    [run] = told(replay.page(trace))
    assert run["passes"] == 0 and run["requests"][0]["forwards"] == []
    check(trace, run)


@pytest.mark.parametrize(("block_length", "temperature"), [(256, 0.0), (32, 0.0), (256, 1.0)])
def test_a_page_is_small(demo, tmp_path, block_length, temperature):
    """Of 256 tokens in 256 passes, all that was predicted included; even when hardly two passes predict the same."""
    out = demo.generate("Write a short story about a fox.", gen_length=256, block_length=block_length, temperature=temperature, seed=0,
                        logits_eos_inf=True, drafts=True)
    assert out.n_forward == 256 and (out.sequences[0] != out.trace.mask_id).all()
    out.save_html(tmp_path / "run.html")
    assert (tmp_path / "run.html").stat().st_size < SIZE


# ---- texts of tokens

def test_a_character_of_several_tokens(demo):
    """The demo tokenizer writes an emoji in bytes; the page shows it once all are there."""
    tokens = demo.tokenizer.encode("a 🦊!")
    fixed = {i: int(t) for i, t in enumerate(tokens)}
    out = demo.generate(PROMPTS[0], gen_length=16, constraints=fixed)
    assert "🦊" in out.trace.pieces.joined.values()
    [run] = told(replay.page(out))
    [(first, count, text)] = run["requests"][0]["joined"]
    assert text == "🦊" and first == tokens.index(tokens[-1 - count]) and tokens[first:first + count] == tokens[-1 - count:-1]


def test_bytes_that_make_no_character_stay_alone(demo):
    half = demo.tokenizer.encode("🦊")[:2]
    pieces = Pieces.of(demo.tokenizer, half, [np.array([*half, 11] * 3)])
    assert pieces.joined == {} and pieces.groups(half) == []


def test_special_tokens_are_known(demo):
    pieces = demo.generate(PROMPTS[0], gen_length=16).trace.pieces
    assert {pieces.texts[t] for t in pieces.special} >= {"<|endoftext|>", "<|mdm_mask|>"}
    assert not any(pieces.texts[t].strip("<|>").isdigit() for t in pieces.special)


def test_without_a_tokenizer_tokens_are_numbers(tiny):
    out = tiny.generate([[1, 2, 3]], gen_length=4)
    [run] = told(replay.page(out))
    assert out.trace.pieces == Pieces() and run["tokens"][run["mask"]] == "#58"
    check(out.trace, run)


@pytest.mark.parametrize("options", METHODS[:8], ids=repr)
def test_a_saved_record_makes_the_same_page(demo, tmp_path, options):
    out = demo.generate(PROMPTS, drafts=True, **lengths(options))
    out.trace.save(tmp_path / "run.trace")
    loaded = Trace.load(tmp_path / "run.trace")
    assert replay.page(loaded) == replay.page(out)
    assert loaded.tokenizer is None and loaded.answer_lengths == out.answer_lengths
    loaded.tokenizer = demo.tokenizer
    assert replay.page(loaded) == replay.page(out)


def test_results_can_be_pickled(demo):
    out = demo.generate(PROMPTS, gen_length=16)
    copy = pickle.loads(pickle.dumps(out))
    assert replay.page(copy) == replay.page(out) and copy.trace.tokenizer is None and out.trace.tokenizer is demo.tokenizer


# ---- the page itself

class Parts(HTMLParser):
    """Tags with their attributes, and what stands in them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=False)
        self.tags, self.inside = [], {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.inside.setdefault(self.tags[-1][0] if self.tags else "", []).append(data)


def test_one_file_with_a_strict_policy(demo):
    page = replay.page(demo.generate(PROMPTS, gen_length=16))
    parts = Parts(page)
    policy = next(a["content"] for tag, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    [script] = re.findall(r"<script>(.*?)</script>", page, re.S)
    [style] = re.findall(r"<style>(.*?)</style>", page, re.S)
    for text, rule in ((script, "script-src"), (style, "style-src")):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    for tag, attributes in parts.tags:
        assert not {"src", "href", "srcset", "style", "action"} & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|\bfetch\(|XMLHttpRequest|import\(|url\("
    assert not re.search(forbidden, script + style)
    assert "{{" not in page.replace(script, "").replace(style, "")


def test_texts_cannot_leave_the_record(demo):
    """Whatever a token says, the record ends where it should and says the same."""
    out = demo.generate(PROMPTS[0], gen_length=16)
    hostile = ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "\u2028\u2029", "\x00", "{{script}}", "\ud800", "\\u003c", '"']
    for i, token in enumerate(pieces := out.trace.pieces.texts):
        pieces[token] = hostile[i % len(hostile)]
    out.trace.tokenizer, out.trace._pieces = None, Pieces(pieces)
    page = replay.page(out)
    [run] = told(page)
    assert set(run["tokens"]) == set(hostile)
    assert page.count("<script") == 2 and page.count("</script") == 2 and page.count("<!--") == 0
    page.encode("utf-8")


def test_two_runs_and_names(demo, tmp_path):
    out, fast = demo.generate(PROMPTS, gen_length=16), demo.generate(PROMPTS, gen_length=16, preset="fast")
    llada_native.save_html([out, fast.trace], tmp_path / "both.html", names=["exact", "<fast>"])
    runs = told((tmp_path / "both.html").read_text("utf-8"))
    assert [run["name"] for run in runs] == ["exact", "<fast>"] and [run["passes"] for run in runs] == [out.n_forward, fast.n_forward]
    assert len(told(replay.page(out, requests=[1]))[0]["requests"]) == 1
    check(out.trace, told(replay.page([out, fast]))[0])


@pytest.mark.parametrize(("runs", "arguments", "error", "message"), [
    ("out", {"names": ["a", "b"]}, ValueError, "names: expected 1, one for each run"),
    ("out", {"names": "a"}, ValueError, "names: expected 1"),
    ("out", {"requests": [2]}, ValueError, r"requests: expected some of 0 to 1, found \[2\]"),
    ("out", {"requests": []}, ValueError, "requests: expected some of 0 to 1"),
    ("out", {"requests": ["a"]}, TypeError, r"requests\[0\]: expected a whole number"),
    ("out", {"drafts": 1}, TypeError, "drafts: expected True or False"),
    ("three", {}, TypeError, "runs: expected a GenerationResult or a Trace, or a list of 1 to 2"),
    ([], {}, TypeError, "a list of 1 to 2"), ("text", {}, TypeError, "a list of 1 to 2"), (["a"], {}, TypeError, "a list of 1 to 2"),
])
def test_wrong_arguments(demo, runs, arguments, error, message):
    out = demo.generate(PROMPTS, gen_length=8)
    with pytest.raises(error, match=message):
        replay.page({"out": out, "three": [out] * 3}.get(runs, runs) if isinstance(runs, str) else runs, **arguments)


def test_notebooks_get_a_frame_that_may_run_its_script_only(demo, monkeypatch):
    out = demo.generate(PROMPTS, gen_length=16, drafts=True)
    [(tag, attributes)] = Parts(out._repr_html_()).tags
    assert tag == "iframe" and attributes["sandbox"] == "allow-scripts" and attributes["srcdoc"] == replay.page(out)
    monkeypatch.setattr(replay, "LARGEST_IN_A_NOTEBOOK", len(replay.page(out)) - 1)
    [(tag, attributes)] = Parts(out._repr_html_()).tags
    assert attributes["srcdoc"] == replay.page(out, requests=[0], drafts=False)
    monkeypatch.setattr(replay, "LARGEST_IN_A_NOTEBOOK", 100)
    assert out._repr_html_() == "<pre>" + "\n".join(out.text) + "</pre>"
    assert isinstance(out, GenerationResult)


# ---- the command

def test_command(tmp_path, capsys):
    exact, fast, page = (str(tmp_path / name) for name in ("exact.trace", "fast.trace", "both.html"))
    assert cli.main(["generate", "--gen-length", "16", "--trace", exact, "--drafts", PROMPTS[0]]) == 0
    assert cli.main(["generate", "--gen-length", "16", "--preset", "fast", "--trace", fast, PROMPTS[0]]) == 0
    assert cli.main(["replay", exact, fast, "-o", page, "--name", "exact", "--name", "fast"]) == 0
    runs = told(Path(page).read_text("utf-8"))
    assert [run["name"] for run in runs] == ["exact", "fast"] and "early stop" in runs[1]["method"]
    assert runs[0]["requests"][0]["guesses"] and runs[1]["requests"][0]["guesses"] is None
    assert cli.main(["replay", exact, "-o", page, "--no-drafts"]) == 0
    assert told(Path(page).read_text("utf-8"))[0]["requests"][0]["guesses"] is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["none.trace"], 1, "none.trace"), ([__file__], 1, "expected a trace"), (["a", "b", "c"], 2, "trace: expected 1 to 2 files, found 3")])
def test_command_errors(tmp_path, capsys, arguments, code, message):
    assert cli.main(["replay", *arguments, "-o", str(tmp_path / "page.html")]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "page.html").exists()


def test_command_overwrites_no_record(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, other = (tmp_path / name for name in ("one.trace", "other.trace"))
    trace = tiny.generate([1, 2, 3], gen_length=8, block_length=8).trace
    for path in (one, other):
        trace.save(path)
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "second").hardlink_to(other)
    kept = other.read_bytes()
    for out in (other, "other.trace", tmp_path / "link", tmp_path / "second"):
        assert cli.main(["replay", str(one), str(other), "-o", str(out)]) == 1
        assert capsys.readouterr().err == f"llada-native: --out: expected another file than {other}, which is read, found {out}\n"
    assert other.read_bytes() == kept


# ---- how a run was decoded, in words

@pytest.mark.parametrize(("options", "wanted"), [
    ({}, "reference, length 64, blocks of 32, 64 steps"),
    ({"max_steps": 16, "temperature": 0.5, "cfg_scale": 1.5},
     "reference, length 64, blocks of 32, 16 steps, temperature 0.5, guidance 1.5"),
    ({"remasking": "entropy", "gen_length": 32}, "reference, length 32, blocks of 32, 32 steps, entropy"),
    ({"preset": "balanced"}, "selector threshold:tau=0.97, early stop, length 64, blocks of 32"),
    ({"preset": "fast"},
     "selector threshold, cache delayed:refresh_every=8,doubt=0.9,prompt_every=32, early stop, length 64, blocks of 32"),
    ({"editor": "wino"}, "editor wino, length 64, blocks of 32, 64 steps"),
    ({"cache": "dual:vicinity=(2,4)"}, "cache dual:vicinity=(2,4), length 64, blocks of 32, 64 steps"),
    ({"gen_length": "auto"}, "canvas grow, length auto, blocks of 32, 64 steps"),
])
def test_titles(demo, options, wanted):
    assert next(iter(demo.stream(PROMPTS[0], **options))).trace.method == wanted


# ---- plots

def test_plots(demo):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    from llada_native import plots

    out = demo.generate(PROMPTS, preset="fast", gen_length=32)
    order, sure, rows = out.plot(request=1)
    mine = out.trace.writes[out.trace.writes["request"] == 1]
    positions = mine["position"] - out.prompt_lengths[1]
    assert np.array_equal(order.collections[0].get_offsets(), np.c_[mine["forward"] + 1, positions])
    known = np.isfinite(mine["confidence"])
    assert np.array_equal(sure.collections[0].get_offsets(), np.c_[positions[known], mine["confidence"][known]])
    passes = out.trace.passes[out.trace.passes["request"] == 1]
    bars = sorted((bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in rows.patches)
    assert bars == [(f + 1, n) for f, n in zip(passes["forward"], passes["rows"], strict=True)]
    assert order.yaxis_inverted(), "the answer is read downwards"
    assert [line.get_ydata()[0] for line in order.get_lines()] == [], "one block has no borders"
    borders = plots.commit_order(demo.generate(PROMPTS[0], gen_length=48, block_length=16).trace).get_lines()
    assert [line.get_ydata()[0] for line in borders] == [15.5, 31.5]
    axes = pyplot.figure().subplots(3)
    assert out.plot(axes) is axes
    assert plots.rows(out.trace).get_ylabel() == "rows computed"
    for broken, error in ((lambda: out.plot(request=2), IndexError), (lambda: out.plot(axes[:2]), ValueError)):
        with pytest.raises(error):
            broken()
    taken = demo.generate(PROMPTS[0], gen_length=32, block_length=16, editor="remask:tokens=2").trace
    assert np.count_nonzero(taken.writes["kind"] == REVOKE)
    points = plots.commit_order(taken).collections[0].get_offsets()
    assert len(points) == np.count_nonzero(taken.writes["kind"] != REVOKE), "what was taken back is no point"
    grown = demo.generate(PROMPTS, canvas="grow:start=8,step=3,most=20,check=4,enough=0,sure=1,doubt=1")
    for request, wanted in enumerate(grown.confidence):
        points = plots.confidence(grown.trace, request).collections[0].get_offsets()
        assert np.array_equal(points[points[:, 0].argsort()], np.c_[range(20), wanted]), "places are those of the last canvas"
    pyplot.close("all")


def test_plots_without_matplotlib():
    """The error names the extra, and nothing else needs it."""
    code = ("import sys; sys.modules['matplotlib'] = None\nimport llada_native as ln\nout = ln.generate('What is 3 plus 4?')\n"
            "try:\n    out.plot()\nexcept ln.MissingPackageError as e:\n    print(e)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert run.stdout == "plots are drawn by matplotlib, which is not installed: pip install 'llada-native[viz]'\n"
