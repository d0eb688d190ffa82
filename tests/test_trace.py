"""The record of a generation, and what steps and streams read from it."""
from __future__ import annotations

import itertools
import json

import folders
import numpy as np
import pytest
from backends import NotesCaches

from llada_native import LLaDAForCausalLM
from llada_native.trace import EDIT, FILL, KINDS, REVEAL, REVOKE, Trace

PROMPTS = ("What is 17 plus 25?", "Sort these numbers: 31, 7, 52, 12.", "What is 3 plus 4?")
METHODS = [
    {}, {"preset": "balanced"}, {"preset": "fast"}, {"cfg_scale": 0.5, "selector": "factor", "cache": "dual"},
    {"selector": "threshold:tau=0.3", "editor": "token_edit:tau=0.4"}, {"editor": "remask:tokens=2"}, {"gen_length": "auto"},
    {"gen_length": "auto", "preset": "fast"}, {"editor": "wino", "early_stop": True},
    {"editor": "remask", "gen_length": 16, "block_length": 16},
    {"selector": "threshold", "canvas": "look_ahead"}, {"selector": "threshold", "canvas": "suffix_window:length=8"},
]

GROWS_IN_THE_MIDDLE = "grow:start=8,step=3,most=20,check=4,enough=0,sure=1,doubt=1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config = folders.config()
    return LLaDAForCausalLM(folders.write(tmp_path_factory.mktemp("trace"), config, folders.tensors(config)))


def lengths(options):
    return options if "gen_length" in options else {"gen_length": 32, "block_length": 16, **options}


@pytest.mark.parametrize("options", METHODS, ids=repr)
def test_it_is_what_happened(demo, options):
    """Every canvas on the way, watched from outside, is the one that the record gives later."""
    seen = []
    out = demo.generate(PROMPTS, callback=lambda step: seen.append((step, step.canvas, step.masks_left, step.positions)),
                        **lengths(options))
    trace = out.trace
    assert len(trace) == len(seen) == out.n_forward
    writes = trace.writes
    assert sum(len(p) for _, _, _, positions in seen for p in positions) == np.count_nonzero(writes["kind"] != FILL)
    for step, canvas, masks, positions in seen:
        for r in range(len(PROMPTS)):
            assert np.array_equal(trace.answer(r, step.forward), canvas[r])
            assert masks[r] == np.count_nonzero(trace.canvas(r, step.forward) == trace.mask_id)
            assert np.array_equal(step.positions[r], positions[r])
    for r, sequence in enumerate(out.sequences):
        assert np.array_equal(trace.canvas(r, len(trace) - 1), sequence)
        assert set(trace.canvas(r, -1)[out.prompt_lengths[r]:]) == {trace.mask_id}
    assert trace.passes["rows"].sum() == out.rows_computed
    assert (np.diff(trace.seconds) > 0).all() and trace.seconds[-1] <= out.timings["total"]


@pytest.mark.parametrize("options", METHODS[:6], ids=repr)
def test_commits(demo, options):
    out = demo.generate(PROMPTS, **lengths(options))
    writes = out.trace.writes
    for r in range(len(PROMPTS)):
        mine = writes[(writes["request"] == r) & (writes["kind"] != FILL)]
        answer = mine["position"] - out.prompt_lengths[r]
        last = {int(p): row for p, row in zip(answer, mine, strict=True) if p >= 0}
        for position, row in last.items():
            if row["kind"] == REVOKE:
                assert row["token"] == out.trace.mask_id and np.isnan(row["confidence"])
            else:
                assert out.confidence[r][position] == row["confidence"]
        assert np.flatnonzero(out.commit_step[r] >= 0).tolist() == sorted(p for p, row in last.items() if row["kind"] != REVOKE)
    kinds = {KINDS[k] for k in writes["kind"]}
    assert kinds == {"reveal", *(["fill"] if "preset" in options else []), *(["revoke"] if "remask" in str(options) else []),
                     *(["edit"] if "token_edit" in str(options) else [])}


def test_the_kinds_differ():
    assert len({REVEAL, EDIT, REVOKE, FILL}) == len(KINDS) == 4


@pytest.mark.parametrize("options", METHODS, ids=repr)
def test_saved_and_loaded(demo, tmp_path, options):
    trace = demo.generate(PROMPTS, **lengths(options)).trace
    trace.save(tmp_path / "run.npz")
    again = Trace.load(tmp_path / "run.npz")
    for table in ("writes", "passes", "growths"):
        assert getattr(again, table).tobytes() == getattr(trace, table).tobytes()
    assert again.seconds.tolist() == trace.seconds.tolist()
    for r, forward in itertools.product(range(len(PROMPTS)), range(-1, len(trace))):
        assert np.array_equal(again.canvas(r, forward), trace.canvas(r, forward))
        assert forward < 0 or np.array_equal(again.settled(r, forward), trace.settled(r, forward))


def test_a_request_that_ends_while_its_canvas_grows(tiny, tmp_path):
    """What a pass wrote, put in and filled comes back in its order."""
    for seed in range(6):
        prompt = np.random.default_rng(seed).integers(0, 50, 6)
        ends = int(np.bincount(tiny.forward(np.r_[prompt, [58] * 16])[6:].argmax(1)).argmax())
        out = tiny.generate(prompt, canvas="grow:start=16,step=4,most=60,check=8,enough=0,sure=1,doubt=1", early_stop=True, block_length=8,
                            selector="threshold:tau=0.03", eos_id=ends)
        out.trace.save(tmp_path / "run.npz")
        assert Trace.load(tmp_path / "run.npz").canvas(0, len(out.trace) - 1).tolist() == out.sequences[0].tolist()


def test_damaged_files_are_refused(demo, tmp_path):
    """By ValueError, whatever byte is wrong, or they load."""
    demo.generate(PROMPTS, **lengths({"preset": "fast"})).trace.save(tmp_path / "run.npz")
    data, rng = (tmp_path / "run.npz").read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (tmp_path / "damaged.npz").write_bytes(damaged)
        try:
            Trace.load(tmp_path / "damaged.npz")
        except ValueError as error:
            assert "expected a trace" in str(error)


@pytest.mark.parametrize(("table", "value"), [
    ("prompt_lengths", [17]), ("prompt_lengths", [17, -1]), ("prompt_lengths", [17, 1000]), ("prompt_lengths", [17.0, 5.0]),
    ("canvases", np.zeros(200)), ("seconds", np.full(32, np.inf)), ("unsettled", [[0, 0, -1]]), ("about", {"gen_length": "a"}),
    ("about", {"gen_length": -1}), ("passes", ("begin", 1000)), ("passes", ("end", 1000)), ("passes", ("end", 0)),
    ("passes", ("request", 0)), ("drafts", ("position", 1000))])
def test_records_that_contradict_themselves(demo, tmp_path, table, value):
    """They are refused, for what is made of a record takes it as it is."""
    demo.generate(PROMPTS[:2], **lengths({"drafts": True})).trace.save(tmp_path / "run.npz")
    tables = dict(np.load(tmp_path / "run.npz"))
    if isinstance(value, tuple):
        column, wrong = value
        tables[table][column][-1] = wrong
    elif isinstance(value, dict):
        tables[table] = np.frombuffer(json.dumps({**json.loads(tables[table].tobytes()), **value}).encode(), np.uint8)
    else:
        tables[table] = np.array(value)
    np.savez(tmp_path / "damaged.npz", **tables)
    with pytest.raises(ValueError, match="expected a trace"):
        Trace.load(tmp_path / "damaged.npz")


def test_a_trace_is_small(demo):
    """Some 25 bytes a token in its tables, and far less in a file."""
    out = demo.generate(PROMPTS[:1] * 8, gen_length=64, block_length=32)
    assert len(out.trace.writes) == 8 * 64 and out.trace.writes.nbytes == 25 * 8 * 64


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 and no archive"])
def test_another_file(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a trace, as Trace\.save writes it"):
        Trace.load(tmp_path / "x")


def test_another_archive(tmp_path):
    np.savez(tmp_path / "x.npz", writes=np.zeros(3))
    with pytest.raises(ValueError, match="expected a trace"):
        Trace.load(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "none.npz")


@pytest.mark.parametrize(("request_", "forward", "error", "message"), [
    (0, 99, IndexError, "forward: expected -1 to 1, found 99"), (0, -2, IndexError, "forward: expected -1 to 1, found -2"),
    (3, 0, IndexError, "request: expected 0 to 2, found 3"), (-1, 0, IndexError, "request: expected 0 to 2, found -1"),
    ("a", 0, TypeError, "request: expected a whole number"), (0, 1.5, TypeError, "forward: expected a whole number")])
def test_no_such_canvas(demo, request_, forward, error, message):
    trace = demo.generate(PROMPTS, gen_length=8, max_steps=2, block_length=8).trace
    with pytest.raises(error, match=message):
        trace.canvas(request_, forward)


# ---- streams

@pytest.mark.parametrize("options", METHODS, ids=repr)
def test_pieces_of_a_stream_are_the_text(demo, options):
    steps = list(demo.stream(PROMPTS, **lengths(options)))
    wanted = demo.generate(PROMPTS, **lengths(options)).text
    for r, text in enumerate(wanted):
        assert "".join(step.new_text[r] for step in steps) == text
        settled = [step.text[r] for step in steps]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(settled)) and settled[-1] == text


def test_a_character_of_several_tokens_comes_whole(demo):
    """The demo tokenizer writes an emoji as its bytes; half of them are not shown."""
    tokens = demo.tokenizer.encode("fox 🦊!")
    assert len(tokens) == 8 and demo.tokenizer.decode(tokens[:5]) == "fox \ufffd"
    fixed = {i: int(t) for i, t in enumerate(tokens) if i != 5}
    texts = [(step.text[0], step.canvas[0][5]) for step in demo.stream(PROMPTS[0], gen_length=16, block_length=16, constraints=fixed)]
    waiting = [text for text, token in texts if token == demo.config.mask_token_id]
    assert waiting and set(waiting) == {"fox "}


def test_drafts(demo):
    for step in demo.stream(PROMPTS, gen_length=32, block_length=32, max_steps=8, drafts=True):
        for draft, canvas in zip(step.drafts, step.canvas, strict=True):
            assert demo.config.mask_token_id not in draft  # one block: all masks were open
            known = canvas != demo.config.mask_token_id
            assert np.array_equal(draft[known], canvas[known])
        assert step.draft_text is not None and all(d.startswith(t) for d, t in zip(step.draft_text, step.text, strict=True))
    assert step.draft_text == demo.generate(PROMPTS, gen_length=32, block_length=32, max_steps=8).text
    assert next(demo.stream(PROMPTS, gen_length=8)).drafts is None
    with pytest.raises(TypeError, match="drafts: expected True or False"):
        demo.stream(PROMPTS, drafts="yes")


@pytest.mark.parametrize("canvas", ["grow:start=4,step=3,most=20,check=4,enough=1", GROWS_IN_THE_MIDDLE], ids=["end", "middle"])
def test_steps_of_an_answer_that_grows(tiny, canvas):
    """Drafts and positions are those of the canvas that the step has made longer."""
    steps = list(tiny.stream([1, 2, 3], canvas=canvas, drafts=True))
    for step in steps:
        [draft], [answer], [positions], [tokens] = step.drafts, step.canvas, step.positions, step.tokens
        known = answer != tiny.config.mask_token_id
        assert len(draft) == len(answer) and np.array_equal(draft[known], answer[known])
        assert np.array_equal(answer[positions - 3], tokens)
    assert len(step.trace.growths) > 2 and len(answer) == 20


def test_closing_a_stream_stops_the_work_and_frees_the_caches(tiny, monkeypatch):
    notes = NotesCaches(tiny._backend)
    monkeypatch.setattr(tiny, "_backend", notes)
    stream = tiny.stream([[1, 2, 3], [4, 5]], gen_length=16, block_length=8, cache="dual")
    first = next(stream)
    assert len(notes.made) == 2 and not any(cache.closed for cache in notes.made)
    stream.close()
    assert all(cache.closed for cache in notes.made) and len(first.trace) == 1
    assert list(stream) == []


def test_time_left(demo):
    """It falls to nothing, whatever the number of passes."""
    for options in ({}, {"preset": "fast"}):
        steps = list(demo.stream(PROMPTS, gen_length=32, block_length=16, **options))
        assert steps[-1].seconds_left == 0 and all(step.seconds_left >= 0 for step in steps)
