"""Cache policies: against a loop that keeps keys and values by hand, and what holds for all of them."""
import re

import folders
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policies import POLICIES, WINDOWED, by_hand

from llada_native import LLaDAForCausalLM, caching, editors, selectors, windows
from llada_native.caching import NAMES, Delayed, Dual, NoCache, Prefix
from llada_native.generation import prepared

MASK = 58


@pytest.fixture(scope="module", params=[0, 1, 2])
def model(request, tmp_path_factory):
    config = folders.config(n_kv_heads=2)
    return LLaDAForCausalLM(folders.write(tmp_path_factory.mktemp("caching"), config, folders.tensors(config, request.param)))


@pytest.fixture(scope="module")
def demo():
    return LLaDAForCausalLM.from_pretrained()


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("tau", [0.05, 0.3])
def test_against_a_loop_by_hand(model, policy, tau):
    prompt = np.random.default_rng(7).integers(0, 50, 11)
    ids, passes, rows = by_hand(model, prompt, 24, 8, tau, policy, MASK)
    out = model.generate(prompt, gen_length=24, block_length=8, selector=selectors.Threshold(tau), cache=policy)
    assert out.sequences[0].tolist() == ids.tolist()
    assert (out.n_forward, out.rows_computed) == (passes, rows)


@pytest.mark.parametrize("policy", WINDOWED, ids=repr)
def test_windows_against_a_loop_by_hand(model, policy):
    """A cache whose slots are those of a window, other ones in each block."""
    prompt, canvas = np.random.default_rng(3).integers(0, 50, 11), windows.SuffixWindow(20, 1.0, 1.5)
    kept = []
    for block in range(4):
        end = 11 + 8 * (block + 1)
        behind = np.arange(end, min(43, end + 20))
        draws = np.random.default_rng([0, block]).random(len(behind))
        kept.append(np.array([*range(end), *behind[draws < 1.5 * np.exp(-0.5 * ((behind - end) / 19) ** 2) / np.sqrt(2 * np.pi)]]))
    ids, passes, rows = by_hand(model, prompt, 32, 8, 0.04, policy, MASK, kept)
    out = model.generate(prompt, gen_length=32, block_length=8, selector=selectors.Threshold(0.04), cache=policy, canvas=canvas)
    assert len(kept[0]) < 43 and out.sequences[0].tolist() == ids.tolist()
    assert (out.n_forward, out.rows_computed) == (passes, rows)


@pytest.mark.parametrize("policy", [Prefix(), Dual(doubt=0.9), Delayed(refresh_every=8, doubt=0.7)], ids=repr)
def test_against_a_loop_by_hand_on_the_demo_model(demo, policy):
    for text in ("What is 17 plus 25?", "Sort these numbers: 31, 7, 52, 12."):
        plain = demo.generate(text, gen_length=64, block_length=32, max_steps=2)
        prompt = plain.sequences[0][:plain.prompt_lengths[0]]
        ids, passes, rows = by_hand(demo, prompt, 64, 32, 0.9, policy, demo.config.mask_token_id)
        out = demo.generate(text, gen_length=64, block_length=32, selector="threshold", cache=policy)
        assert out.sequences[0].tolist() == ids.tolist() and (out.n_forward, out.rows_computed) == (passes, rows)


def results(out):
    return [out.sequences[0].tolist(), out.commit_step[0].tolist(), out.confidence[0].tobytes(), out.n_forward]


@pytest.mark.parametrize("kind", [Prefix, Dual, Delayed])
@pytest.mark.parametrize("options", [{}, {"selector": "threshold:tau=0.2"}, {"temperature": 0.8, "seed": 3}, {"cfg_scale": 1.5},
                                     {"max_steps": 6, "remasking": "random", "seed": 1}], ids=repr)
def test_always_refreshed_is_no_cache(model, kind, options):
    options = {"gen_length": 12, "block_length": 6, **options}
    wanted = model.generate([3, 1, 4, 1, 5], **options)
    assert results(model.generate([3, 1, 4, 1, 5], cache=kind(refresh_every=1), **options)) == results(wanted)
    assert results(model.generate([3, 1, 4, 1, 5], cache=NoCache(), **options)) == results(wanted)


@pytest.mark.parametrize("policy", [Prefix(), Dual(vicinity=(2, 2)), Delayed(doubt=0.4)], ids=repr)
@pytest.mark.parametrize("guidance", [0, 1.0])
def test_a_batch_gives_what_each_gives_alone(model, policy, guidance):
    prompts = [[1, 2, 3], [4] * 9, [5, 6], [7] * 5]
    options = {"gen_length": 16, "block_length": 8, "selector": "threshold:tau=0.1", "cache": policy, "cfg_scale": guidance,
               "temperature": 0.5, "seed": [1, 2, 3, 4], "early_stop": True}
    together = model.generate(prompts, **options)
    for i, prompt in enumerate(prompts):
        alone = model.generate(prompt, **{**options, "seed": [i + 1]})
        assert together.sequences[i].tolist() == alone.sequences[0].tolist()
        assert together.confidence[i].tobytes() == alone.confidence[0].tobytes()


def test_guidance_caches_its_other_half(model):
    """One plan for both halves: twice the rows, and always refreshed it is exact (above)."""
    options = {"gen_length": 16, "block_length": 8, "selector": "factor", "cache": "dual"}
    plain, guided = model.generate([1, 2, 3], **options), model.generate([1, 2, 3], cfg_scale=1e-30, **options)
    assert guided.sequences[0].tolist() == plain.sequences[0].tolist() and guided.rows_computed == 2 * plain.rows_computed


def test_a_block_that_the_first_pass_finishes_costs_no_other(model):
    out = model.generate([1, 2, 3], gen_length=16, block_length=8, selector="threshold:tau=0", cache="dual")
    assert out.n_forward == 2 and out.rows_computed == 2 * 19


@pytest.mark.parametrize("kind", [Prefix, Dual, Delayed])
@pytest.mark.parametrize(("options", "error", "message"), [
    ({"refresh_every": -1}, ValueError, "refresh_every: expected"), ({"warmup": 1.5}, TypeError, "warmup: expected"),
    ({"doubt": -0.1}, ValueError, "doubt: expected a number from 0 to 1"), ({"doubt": "high"}, TypeError, "doubt: expected"),
])
def test_bad_parameters(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(**options)


@pytest.mark.parametrize("vicinity", [3, (1,), (1, 2, 3), "16"])
def test_bad_vicinity(vicinity):
    with pytest.raises(TypeError, match="vicinity: expected two numbers of positions"):
        Dual(vicinity=vicinity)


def test_a_vicinity_as_text(model):
    options = {"gen_length": 16, "block_length": 8, "selector": "threshold:tau=0.1"}
    wanted = model.generate([1, 2, 3], cache=Dual(vicinity=(2, 3), warmup=1), **options)
    for cache in ("dual:vicinity=(2,3),warmup=1", "dual:warmup=1,vicinity=(2, 3)", Dual(vicinity=[2, 3], warmup=1)):
        assert results(model.generate([1, 2, 3], cache=cache, **options)) == results(wanted)
    with pytest.raises(ValueError, match=r"dual: expected parameter=value, found '16'; it has refresh_every, warmup"):
        model.generate([1, 2, 3], cache="dual:16", **options)


@pytest.mark.parametrize("preset", ["balanced", "fast"])
def test_presets_fill_texts_too(demo, preset):
    assert demo.infill(["12 + 30 = ", 2, "."], prompt="What is 12 plus 30?", preset=preset).text == ["12 + 30 = 42."]


def test_registry():
    assert all(getattr(caching, kind.__name__) is kind and kind.__doc__ for kind in NAMES.values())
    assert eval(repr(Dual(vicinity=(1, 2))), vars(caching)) == Dual(vicinity=(1, 2))


CHOICES = st.one_of(
    st.builds(selectors.Quota), st.builds(selectors.Threshold, st.floats(0, 1)), st.builds(selectors.Factor, st.floats(0.1, 4)),
    st.builds(selectors.EntropyBound, st.floats(0, 2)), st.builds(selectors.Margin, st.floats(0, 1)), st.just(selectors.Hierarchy()),
    st.builds(selectors.EntropyThreshold, st.floats(0, 4)), st.just(selectors.LocalLeap(0.5, 0.1, 3)),
    st.builds(selectors.Credit, st.floats(0, 1)), st.builds(selectors.Klass, st.floats(0, 1), st.floats(0, 1), st.integers(1, 3)))
KEPT = st.one_of(
    st.just(NoCache()), st.builds(Prefix, st.integers(0, 4), st.integers(0, 3), st.none() | st.floats(0, 1),
              st.integers(0, 9)),
    st.builds(Dual, st.integers(0, 4), st.integers(0, 3), st.none() | st.floats(0, 1),
              st.integers(0, 9), st.tuples(st.integers(0, 9), st.integers(0, 9))),
    st.builds(Delayed, st.integers(0, 4), st.integers(0, 3), st.none() | st.floats(0, 1), st.integers(0, 9)))


CANVASES = st.one_of(
    st.just(windows.Blocks()), st.builds(windows.SuffixWindow, st.integers(0, 20), st.floats(0, 5), st.floats(0, 3), st.integers(0, 9)),
    st.builds(windows.LookAhead, st.integers(1, 4), st.floats(0, 1)),
    st.builds(windows.Grow, st.integers(1, 9), st.integers(1, 9), st.integers(9, 30), st.integers(1, 9), st.floats(0, 1), st.floats(0, 1),
              st.floats(0, 1)))
EDITORS = st.one_of(
    st.just(editors.NoEditor()), st.builds(editors.TokenEdit, st.floats(0, 1), st.integers(0, 5)),
    st.builds(editors.Remask, st.floats(0, 1), st.integers(1, 4)), st.builds(editors.Wino, st.floats(0, 1), st.floats(0, 1)))


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(selector=CHOICES, cache=KEPT, canvas=CANVASES, editor=EDITORS,
       blocks=st.integers(1, 3), block=st.integers(1, 7), fewer=st.integers(1, 7), prompt=st.integers(1, 9),
       early=st.booleans(), temperature=st.sampled_from([0.0, 0.7]), guidance=st.sampled_from([0.0, 1.0]), fixed=st.booleans())
def test_any_method_ends(model, selector, cache, canvas, editor, blocks, block, fewer, prompt, early, temperature, guidance, fixed):
    """Every pass writes, or is followed by one that does; no mask is left, and fixed tokens stay. What is refused says why."""
    fixed = fixed and blocks * block > 1 and not canvas.grows
    options = {"block_length": block, "temperature": temperature, "cfg_scale": guidance, "selector": selector, "cache": cache,
               "canvas": canvas, "editor": editor, "early_stop": early, "seed": 5, "constraints": {0: 17} if fixed else None}
    if not canvas.grows:
        options |= {"gen_length": blocks * block, "max_steps": blocks * min(block, fewer)}
    fixed_words, seed = options.pop("constraints"), options.pop("seed")
    try:
        call = prepared(model, np.arange(prompt), None, "auto", seed, fixed_words, options)
    except ValueError as refusal:
        assert re.match("editor|canvas|selector", str(refusal))
        return
    out = call.run(False, None, None)
    answer = out.sequences[0][prompt:]
    assert not fixed or answer[0] == 17
    assert MASK not in answer or (selector == selectors.Quota() and not editor.edits and not canvas.grows)
    assert out.trace.canvas(0, len(out.trace) - 1).tolist() == out.sequences[0].tolist()
    assert out.trace.passes["rows"].sum() == out.rows_computed and len(out.trace) == out.n_forward
    assert not canvas.grows or len(answer) <= canvas.most

    wrote = np.bincount(out.trace.writes["forward"], minlength=len(out.trace)) > 0
    idle = np.flatnonzero(~wrote)
    doubts = cache.keeps and cache.doubt is not None
    measures = canvas.grows * (canvas.most - canvas.start + 1) if canvas.grows else 0
    checks = len(answer) * isinstance(editor, editors.TokenEdit)  # a block's last pass finds nothing to change
    assert len(idle) <= doubts * len(wrote) // 2 + measures + checks
    if not (doubts or canvas.grows or editor.edits):
        assert out.n_forward <= options["max_steps"]
