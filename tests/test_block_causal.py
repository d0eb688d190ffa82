"""Generation with block-causal models: the loops of LLaDA2.0 and 2.1, caches that change no bit, prompts that end anywhere."""
from __future__ import annotations

from itertools import pairwise

import folders
import llada2
import numpy as np
import pytest
from loops import best_of, masks_of, surest

from llada_native import InferTask, LLaDAForCausalLM
from llada_native.caching import Committed
from llada_native.editors import TokenEdit
from llada_native.selectors import Quota, Threshold
from llada_native.windows import CausalBlocks

B, MASK, EOS = llada2.BLOCK, llada2.MASK, 48  # a token that answers of this model hold
PROMPTS = (1, 31, 32, 33, 70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = llada2.config(eos_token_id=EOS)
    tensors = llada2.tensors(config)
    tensors["model.norm.weight"] *= 6  # some predictions are sure, others are not
    return folders.write(tmp_path_factory.mktemp("llada2"), config, tensors)


@pytest.fixture(scope="module")
def model(folder):
    return LLaDAForCausalLM(folder)


def prompt_of(length, seed=0):
    return np.random.default_rng([length, seed]).integers(0, 60, length)


def loop(model, prompt, length, tau, *, steps=B, stop=True, edit=None, budget=16):
    """LLaDA2.0's `generate`, and 2.1's where `edit` is its second threshold: every pass computes everything up to the block's end.

    Returns the sequence, the number of passes, and the rows that they would need with the keys of finished blocks.
    """
    ids = np.full(-(-(len(prompt) + length) // B) * B, MASK)
    ids[:len(prompt)] = prompt
    shares = [B // steps + (i < B % steps) for i in range(steps)]
    passes = rows = kept = 0

    def ended(end):
        found = np.flatnonzero(ids[len(prompt):end] == EOS)
        return stop and len(found) and MASK not in ids[:len(prompt) + found[0]]

    for end in range(len(prompt) // B * B + B, len(ids) + 1, B):
        own = range(max(end - B, len(prompt)), end)
        step = after = 0
        while True:
            open_ = masks_of(ids, own[0], end, MASK)
            after += not open_
            if (not open_ and edit is None) or after > budget or (edit is None and ended(end)):
                break
            logits = model.forward(ids[:end]).astype(float)
            logits[:, MASK] = -np.inf
            passes, rows, before = passes + 1, rows + end - kept, ids.copy()
            edits = {}
            if edit is not None:
                edits = {i: found for i, found in best_of(logits, [i for i in own if i not in open_]).items()
                         if found[0] != ids[i] and found[1] > edit}
            if open_:
                found = best_of(logits, open_)
                sure = [i for i in open_ if found[i][1] > tau]
                least = shares[min(step, steps - 1)]
                order = sorted(open_, key=lambda i: (-found[i][1], i))
                for i in sure if len(sure) >= least else order[:least]:
                    ids[i] = found[i][0]
            for i, (token, _) in edits.items():
                ids[i] = token
            step += 1
            kept = end if np.array_equal(ids, before) else end - B  # keys of the block's last tokens, or of masks
            if not open_ and not edits:
                break
        if ended(end):
            ids[end:] = EOS
            ids[ids == MASK] = EOS
            break
    return ids[:len(prompt) + length], passes, rows


@pytest.mark.parametrize("length", [5, 64, 90])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(("options", "parameters"), [
    ({}, {"tau": 0.95}),
    ({"selector": Threshold(0.5, strict=True)}, {"tau": 0.5}),
    ({"selector": "threshold:tau=0.3,strict=true", "early_stop": False}, {"tau": 0.3, "stop": False}),
    ({"preset": "quality"}, {"tau": 0.7, "edit": 0.5}),
    ({"preset": "speed"}, {"tau": 0.5, "edit": 0.0}),
    ({"preset": "speed", "editor": TokenEdit(0.2, 3), "early_stop": False}, {"tau": 0.5, "edit": 0.2, "budget": 3, "stop": False}),
])
def test_the_published_loops(model, prompt, length, options, parameters):
    ids = prompt_of(prompt)
    tokens, passes, rows = loop(model, ids, length, **parameters)
    out = model.generate(ids, gen_length=length, **options)
    assert out.sequences[0].tolist() == tokens.tolist()
    assert (out.n_forward, out.rows_computed) == (passes, rows)


def test_the_loops_do_something(model):
    """Of the cases above: several tokens a pass, answers that end early, edits that change tokens, and a budget that runs out."""
    ids = prompt_of(33)
    plain, passes, _ = loop(model, ids, 64, 0.5)
    assert passes < 50
    edited, more, _ = loop(model, ids, 64, 0.5, edit=0.0)
    assert edited.tolist() != plain.tolist() and more > passes
    assert any(EOS in loop(model, prompt_of(n), 90, 0.95)[0][n:] for n in PROMPTS)


@pytest.mark.parametrize("steps", [3, 6, 24, 96])
def test_fewer_steps(model, steps):
    """A step reveals its share of a whole block, of a block that begins with the prompt's end too."""
    ids = prompt_of(41)
    tokens, passes, rows = loop(model, ids, 96, 0.95, steps=steps // 3, stop=False)
    out = model.generate(ids, gen_length=96, max_steps=steps, early_stop=False)
    assert (out.sequences[0].tolist(), out.n_forward, out.rows_computed) == (tokens.tolist(), passes, rows)


def same(a, b):
    for x, y in zip(a.sequences + a.confidence + a.commit_step, b.sequences + b.confidence + b.commit_step, strict=True):
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bfloat16_fast", "int8", "int4"])
@pytest.mark.parametrize("options", [{}, {"preset": "speed"}, {"temperature": 0.8, "seed": 3}, {"cfg_scale": 0.7},
                                     {"selector": "quota", "remasking": "entropy"}, {"selector": "credit:tau=0.6"},
                                     {"editor": "remask", "selector": "quota"}])
def test_kept_keys_change_no_bit(folder, isa, dtype, options):
    """Against recomputing everything, alone and in a batch, with parts of the prompt computed apart."""
    with LLaDAForCausalLM(folder, dtype=dtype, isa=isa, num_threads=2) as model:
        prompts = [prompt_of(n) for n in PROMPTS]
        given = {"gen_length": 40, **options}
        seed = given.pop("seed", None)
        everything = model.generate(prompts, cache="none", seed=seed, **given)
        same(model.generate(prompts, seed=seed, **given), everything)
        same(model.generate(prompts, cache="committed:prefill=1", seed=seed, **given), everything)
        if seed is None:
            for i, prompt in enumerate(prompts):
                alone = model.generate(prompt, **given)
                assert alone.sequences[0].tobytes() == everything.sequences[i].tobytes()
                assert alone.confidence[0].tobytes() == everything.confidence[i].tobytes()
        assert everything.rows_computed > model.generate(prompts, seed=seed, **given).rows_computed


def test_the_reference_backend_generates_the_same(folder, model):
    with LLaDAForCausalLM(folder, backend="reference") as reference:
        for n in PROMPTS:
            a, b = (m.generate(prompt_of(n), gen_length=40) for m in (model, reference))
            assert (a.sequences[0].tolist(), a.n_forward, a.rows_computed) == (b.sequences[0].tolist(), b.n_forward, b.rows_computed)


def test_a_long_prompt_is_computed_in_parts(model):
    """Whole blocks of the prompt, as many rows at a time as were asked for; the trace tells, and no step is spent."""
    ids = prompt_of(300)
    whole = model.generate(ids, gen_length=20, cache=Committed(prefill=512))
    for prefill, parts in ((128, [128, 128]), (100, [96, 96]), (1, [32] * 8), (288, []), (512, [])):
        out = model.generate(ids, gen_length=20, cache=Committed(prefill=prefill))
        same(out, whole)
        assert out.trace.passes["rows"][:len(parts) + 1].tolist() == [*parts, 320 - sum(parts)]
        assert out.trace.passes["open"][:len(parts) + 1].tolist() == [0] * len(parts) + [20]
        assert out.rows_computed == whole.rows_computed
        steps = list(model.stream(ids, gen_length=20, cache=Committed(prefill=prefill)))
        assert [len(s.trace.forwards) for s in steps][-1] == out.n_forward


def test_a_block_is_committed_with_the_next(model):
    """No pass for keys alone, and none for those of the last block."""
    out = model.generate(prompt_of(64), gen_length=96, early_stop=False)
    rows = out.trace.passes["rows"].tolist()
    assert rows[0] == 96 and set(rows[1:]) == {32, 64} and rows.count(64) == 2
    assert len(out.sequences[0]) == 64 + 96


def test_what_lies_behind_the_block_is_not_seen(model):
    """An answer does not depend on the length that was asked for, as far as it goes and its last block is whole."""
    for n in PROMPTS:
        long, short = (model.generate(prompt_of(n), gen_length=g, early_stop=False).sequences[0] for g in (120, 40))
        assert short.tolist() == long[:n + 40].tolist()


def test_answers_end_where_they_are_asked_to(model):
    out = model.generate([prompt_of(n) for n in PROMPTS], gen_length=40, early_stop=False)
    assert [len(s) - n for s, n in zip(out.sequences, PROMPTS, strict=True)] == [40] * 5
    assert all(len(c) == len(s) == 40 for c, s in zip(out.confidence, out.commit_step, strict=True))
    assert MASK not in np.concatenate(out.sequences) and all(n <= 40 for n in out.answer_lengths)


def test_early_stop_is_exact_up_to_the_end(model):
    ended = 0
    for seed in range(12):
        ids = prompt_of(20, seed)
        whole, out = (model.generate(ids, gen_length=90, early_stop=stop) for stop in (False, True))
        answer = whole.sequences[0][20:].tolist()
        cut = answer.index(EOS) + 1 if EOS in answer else 90
        assert out.sequences[0][20:20 + cut].tolist() == answer[:cut]
        assert set(out.sequences[0][20 + 96:].tolist()) <= {EOS}  # behind the block
        assert out.n_forward <= whole.n_forward
        ended += out.n_forward < whole.n_forward
    assert ended


def test_without_an_end_token_nothing_stops_early(tmp_path, model):
    c = llada2.config(eos_token_id=None)
    tensors = llada2.tensors(c)
    tensors["model.norm.weight"] *= 6
    with LLaDAForCausalLM(folders.write(tmp_path, c, tensors)) as endless:
        same(endless.generate(prompt_of(20), gen_length=90), model.generate(prompt_of(20), gen_length=90, early_stop=False))
        same(endless.generate(prompt_of(20), gen_length=90, eos_id=EOS), model.generate(prompt_of(20), gen_length=90))
        with pytest.raises(ValueError, match="early_stop: the checkpoint names no end-of-text token"):
            endless.generate(prompt_of(20), gen_length=90, early_stop=True)


def test_streams_settle_block_by_block(model):
    steps = list(model.stream(prompt_of(40), gen_length=90, early_stop=False))
    assert [b - a for a, b in pairwise(s.block for s in steps)].count(1) == 3 == steps[-1].n_blocks - 1


def test_infill(model):
    """A text is not made longer: its last block is as long as it is."""
    text = prompt_of(50)
    text[[0, 7, 31, 32, 49]] = MASK
    everything = model.infill([text], cache="none")
    out = model.infill([text])
    same(out, everything)
    assert MASK not in out.sequences[0] and np.array_equal(out.sequences[0][text != MASK], text[text != MASK])
    logits = model.forward(text[:B])
    logits[:, MASK] = -np.inf
    first = best_of(logits.astype(float), masks_of(text, 0, B, MASK))
    assert out.sequences[0][surest(first)] == first[surest(first)][0]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("length", [1, 31, 50, 64])
def test_steps_count_the_blocks_of_a_text(model, prompt, length):
    """A text behind a prompt that ends within a block may touch one block more than its length has."""
    text, steps = np.full(length, MASK), []
    model.infill([text], prompt=[prompt_of(prompt)], selector="quota", callback=lambda step: steps.append(step) and None)
    blocks = (prompt + length - 1) // B - prompt // B + 1
    assert {(s.n_blocks, s.n_steps) for s in steps} == {(blocks, blocks * B)}
    assert steps[-1].block == blocks - 1 and [s.index for s in steps] == sorted({s.index for s in steps}) and steps[-1].index < blocks * B


@pytest.mark.parametrize(("options", "message"), [
    ({"block_length": 16}, r"block_length: expected that of the model's attention \(32\), found 16"),
    ({"cache": "dual"}, "cache: the model is block-causal.*expected 'committed' or 'none', found Dual"),
    ({"cache": "delayed"}, "cache: the model is block-causal"),
    ({"canvas": "suffix_window"}, r"canvas: the model is block-causal.*expected none or CausalBlocks\(length=32\), found SuffixWindow"),
    ({"canvas": "blocks"}, "canvas: the model is block-causal"),
    ({"canvas": CausalBlocks(16)}, "canvas: the model is block-causal"),
    ({"canvas": "look_ahead"}, "canvas: the model is block-causal"),
    ({"gen_length": "auto"}, r"gen_length: 'auto' is canvas='grow', found canvas=CausalBlocks\(length=32\) beside it"),
    ({"editor": "wino"}, "editor: the model is block-causal.* needs rows that see the whole canvas"),
    ({"preset": "speed", "editor": "wino"}, "editor: the model is block-causal"),
    ({"preset": "fast"}, "preset: expected one of 'reference', 'quality', 'speed', found 'fast'"),
    ({"gen_length": 90, "max_steps": 50}, r"max_steps: expected a multiple of the number of blocks \(3 = gen_length 90 / block_length 32, "
                                          r"rounded up\), found 50"),
    ({"cache": "committed:prefill=0"}, "prefill: expected"),
])
def test_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(prompt_of(9), **{"gen_length": 40, **options})


def test_a_mask_in_the_prompt_is_refused(model):
    with pytest.raises(ValueError, match=r"prompts\[0\]: expected no mask token"):
        model.generate([1, MASK, 2], gen_length=8)


def test_tasks_are_refused(model):
    with pytest.raises(ValueError, match="task 1: expected a model whose rows see the whole canvas, found a block-causal one"):
        model.batch_infer_one_round([InferTask(1, [1, 2, 3], gen_length=8)])


@pytest.mark.parametrize(("options", "message"), [
    ({"canvas": "causal_blocks"}, r"canvas: CausalBlocks\(length=32\) is for block-causal models, and here every row sees"),
    ({"cache": "committed"}, r"cache: Committed\(prefill=512\) is for block-causal models"),
    ({"preset": "quality"}, "preset: expected one of 'reference', 'balanced', 'fast', found 'quality'"),
])
def test_other_models_have_none_of_it(options, message):
    with LLaDAForCausalLM() as demo, pytest.raises(ValueError, match=message):
        demo.generate("1", **options)


def test_parts_by_name(model):
    ids = prompt_of(9)
    default = model.generate(ids, gen_length=40)
    same(model.generate(ids, gen_length=40, selector="threshold:tau=0.95,strict=true", cache="committed", canvas="causal_blocks:length=32"),
         default)
    assert model.generate(ids, gen_length=32, selector=Quota(), max_steps=1, early_stop=False).n_forward == 2
