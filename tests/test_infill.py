"""Fixed words in the canvas, and texts with holes: what is given never changes, and everything else is what a plain loop makes of it."""
from __future__ import annotations

import itertools

import folders
import numpy as np
import oracle
import pytest
from scipy.special import softmax

from llada_native import LLaDAForCausalLM

MASK = 58
GEN = 8
PROMPT = np.array([4, 9, 2, 33, 17])
SCHEDULES = [(8, 8), (8, 3), (8, 1), (4, 6), (2, 4), (1, 8), (4, 16)]
FIXED = {1: [7, 7], 6: 41}
FIXED_ANSWER = [MASK, 7, 7, MASK, MASK, MASK, 41, MASK]


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """(model, config, tensors) of a tiny model without a tokenizer, whose logits spread over several units."""
    config = folders.config(n_kv_heads=2)
    tensors = folders.tensors(config, seed=3)
    tensors["model.transformer.ff_out.weight"] *= 5
    folder = folders.write(tmp_path_factory.mktemp("sharp"), config, tensors)
    return LLaDAForCausalLM(folder, num_threads=1), config, tensors


def denoise(tensors, config, prompt, answer, block_length, max_steps, *, cfg_scale=0.0, shown=()):
    """Low-confidence denoising at temperature 0 in float64.

    Guidance hides all that was given, but for the positions `shown` of the answer. Returns the sequence and the steps of its commits.
    """
    x, n, length = np.concatenate([prompt, answer]).astype(int), len(prompt), len(answer)
    given = x != MASK
    given[n + np.array(shown, int)] = False
    commit, per_block = np.full(length, -1), max_steps * block_length // length
    for block in range(length // block_length):
        end = n + (block + 1) * block_length
        quotas = oracle.transfer_counts(np.array([(x[end - block_length:end] == MASK).sum()]), per_block)[0]
        for i in np.flatnonzero(quotas):
            logits = oracle.forward(tensors, config, x)
            if cfg_scale:
                without = oracle.forward(tensors, config, np.where(given, MASK, x))
                logits = without + (cfg_scale + 1) * (logits - without)
            masked = np.flatnonzero(x[:end] == MASK)
            chosen = masked[np.argsort(-softmax(logits, axis=1).max(1)[masked], kind="stable")[:quotas[i]]]
            x[chosen] = logits.argmax(1)[chosen]
            commit[chosen - n] = np.where(x[chosen] == MASK, -1, block * per_block + i)
    return x, commit


def watched(call, *args, **options):
    """The result of a call, and the canvases of all its steps: one list a step."""
    steps = []
    result = call(*args, callback=lambda step: steps.append(step), **options)
    return result, steps


# ---- constraints: results


@pytest.mark.parametrize("cfg_scale", [0.0, 0.9])
@pytest.mark.parametrize(("block", "steps"), SCHEDULES)
def test_fixed_tokens_stay_and_the_rest_is_the_oracle(sharp, block, steps, cfg_scale):
    model, config, tensors = sharp
    options = {"gen_length": GEN, "block_length": block, "max_steps": steps, "cfg_scale": cfg_scale}
    result, seen = watched(model.generate, PROMPT, constraints=FIXED, **options)
    wanted, commit = denoise(tensors, config, PROMPT, FIXED_ANSWER, block, steps, cfg_scale=cfg_scale)
    assert np.array_equal(result.sequences[0], wanted)
    assert np.array_equal(result.commit_step[0], commit)
    fixed = np.array(FIXED_ANSWER) != MASK
    assert (result.commit_step[0][fixed] == -1).all() and np.isnan(result.confidence[0][fixed]).all()
    assert (result.commit_step[0][~fixed] >= 0).all() and not np.isnan(result.confidence[0][~fixed]).any()
    assert len(seen) == result.n_forward == len(set(commit[~fixed]))
    for step in seen:
        assert np.array_equal(step.canvas[0][fixed], np.array(FIXED_ANSWER)[fixed])
        assert not np.isin(step.positions[0] - len(PROMPT), np.flatnonzero(fixed)).any()


def test_constraints_change_the_rest(sharp):
    """The model sees what is fixed: the same masks are filled with other tokens."""
    model, _, _ = sharp
    free = model.generate(PROMPT, gen_length=GEN).sequences[0][-GEN:]
    fixed = model.generate(PROMPT, gen_length=GEN, constraints=FIXED).sequences[0][-GEN:]
    assert (free != fixed)[np.array(FIXED_ANSWER) == MASK].any()


def test_guidance_hides_fixed_tokens(sharp):
    """Not hiding them in the unconditional half gives other tokens, so that the comparison with the oracle means something."""
    model, config, tensors = sharp
    differ = 0
    for seed in range(8):
        words = np.random.default_rng(seed).integers(0, 55, 3)
        answer = np.full(GEN, MASK)
        answer[[0, 3, 5]] = words
        found = model.generate(PROMPT, gen_length=GEN, cfg_scale=2.0, constraints={0: words[0], 3: words[1], 5: words[2]}).sequences[0]
        assert np.array_equal(found, denoise(tensors, config, PROMPT, answer, GEN, GEN, cfg_scale=2.0)[0])
        shown = denoise(tensors, config, PROMPT, answer, GEN, GEN, cfg_scale=2.0, shown=[0, 3, 5])[0]
        differ += not np.array_equal(found, shown)
    assert differ


@pytest.mark.parametrize("fixed", [range(8), range(0, 8, 2), [0], [7], range(1, 8)])
def test_forward_passes_are_what_the_quotas_say(sharp, fixed):
    """A block takes as many steps as it has masks or steps, whichever is less; a block without masks takes none."""
    model, _, _ = sharp
    for block, steps in ((8, 8), (8, 3), (4, 4), (2, 8), (2, 4)):
        constraints = {i: 3 for i in fixed}
        blocks, gen = 16 // block, 16
        masks = np.array([sum(p not in constraints for p in range(b * block, (b + 1) * block)) for b in range(blocks)])
        found = model.generate(PROMPT, gen_length=gen, block_length=block, max_steps=steps * blocks, constraints=constraints)
        assert found.n_forward == np.minimum(masks, steps).sum()
        assert found.rows_computed == found.n_forward * (len(PROMPT) + gen)


def test_equal_forms(sharp):
    """A number, lists, arrays; pieces side by side are one piece; the order of the dict does not matter."""
    model, _, _ = sharp
    wanted = model.generate(PROMPT, gen_length=GEN, constraints=FIXED).sequences[0]
    for same in ({6: [41], 1: (7, 7)}, {1: np.array([7, 7]), 6: np.int64(41)}, {np.int32(1): 7, 2: 7, 6: np.array([41], np.uint8)},
                 [{1: [7], 2: [7], 6: 41}]):
        assert np.array_equal(model.generate(PROMPT, gen_length=GEN, constraints=same).sequences[0], wanted)
    for none in (None, {}, [{}]):
        assert np.array_equal(model.generate(PROMPT, gen_length=GEN, constraints=none).sequences[0],
                              model.generate(PROMPT, gen_length=GEN).sequences[0])


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9}, {"cfg_scale": 0.7}, {"temperature": 0.9, "top_k": 5, "cfg_scale": 0.7},
                                     {"remasking": "random"}, {"remasking": "entropy", "repetition_penalty": 1.5}], ids=str)
def test_one_dict_each_is_the_same_in_a_batch_as_alone(sharp, options):
    """Prompts of three lengths with different constraints, one without."""
    model, _, _ = sharp
    prompts = [PROMPT, PROMPT[:2], np.arange(11)]
    each = [FIXED, {}, {0: [1, 2, 3], 7: 5}]
    options = {"gen_length": GEN, "block_length": 4, **options}
    alone = [model.generate(p, constraints=c, seed=[9 + i], **options) for i, (p, c) in enumerate(zip(prompts, each, strict=True))]
    for order in itertools.permutations(range(3)):
        together = model.generate([prompts[i] for i in order], constraints=[each[i] for i in order], seed=[9 + i for i in order], **options)
        for place, i in enumerate(order):
            assert np.array_equal(together.sequences[place], alone[i].sequences[0])
            assert np.array_equal(together.commit_step[place], alone[i].commit_step[0])


def test_one_dict_for_all(sharp):
    model, _, _ = sharp
    found = model.generate([PROMPT, PROMPT[:2]], gen_length=GEN, constraints=FIXED)
    for p, ids in zip((PROMPT, PROMPT[:2]), found.sequences, strict=True):
        assert np.array_equal(ids, model.generate(p, gen_length=GEN, constraints=[FIXED]).sequences[0])


def test_text_is_encoded_as_it_stands(demo):
    """Without a chat template around it, and it comes out in the answer."""
    ids = demo.tokenizer.encode("Paris")
    options = {"gen_length": 16, "block_length": 16}
    a, b = (demo.generate("What is the capital of Spain?", constraints={4: words}, **options) for words in ("Paris", ids))
    assert a.text == b.text and np.array_equal(a.sequences[0], b.sequences[0])
    assert a.sequences[0][a.prompt_lengths[0] + 4:][:len(ids)].tolist() == ids


def test_stream_takes_constraints(sharp):
    model, _, _ = sharp
    last = list(model.stream(PROMPT, gen_length=GEN, constraints=FIXED))[-1]
    assert np.array_equal(last.canvas[0], model.generate(PROMPT, gen_length=GEN, constraints=FIXED).sequences[0][-GEN:])


def test_a_fixed_end_token_ends_the_text(demo):
    """It counts like one that was generated: finish_reason is "stop", and the text is what stands before it."""
    eos = demo.config.eos_token_id
    out = demo.generate("What is 17 plus 25?", gen_length=32, block_length=32, constraints={0: "17 +", 12: eos})
    assert out.finish_reason == ["stop"] and out.answer_lengths[0] <= 12
    assert out.text[0].startswith("17 +") and out.sequences[0][out.prompt_lengths[0] + 12] == eos


def test_a_suppressed_token_may_be_fixed(sharp):
    """suppress_tokens is about draws."""
    model, _, _ = sharp
    answer = model.generate(PROMPT, gen_length=GEN, constraints=FIXED, suppress_tokens=[7, 41]).sequences[0][-GEN:]
    assert np.flatnonzero(answer == 7).tolist() == [1, 2] and np.flatnonzero(answer == 41).tolist() == [6]


def test_fixed_tokens_count_for_the_penalty(sharp):
    """Tokens of the answer, however they came there."""
    model, config, tensors = sharp
    wanted = int(model.generate(PROMPT, gen_length=2, constraints={1: 3}, max_steps=1).sequences[0][-2])
    found = model.generate(PROMPT, gen_length=2, constraints={1: wanted}, repetition_penalty=1e6).sequences[0]
    logits = oracle.forward(tensors, config, np.array([*PROMPT, MASK, wanted]))[-2]
    seen = list({*PROMPT, wanted})
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / 1e6, logits[seen] * 1e6)
    assert found[-2] == logits.argmax() != wanted


# ---- constraints: refusals


@pytest.mark.parametrize(("constraints", "message"), [
    ({8: 1}, r"constraints: position: expected 0 to 7, found 8$"),
    ({-1: 1}, r"constraints: position: expected 0 to 7, found -1$"),
    ({10**30: 1}, r"constraints: position: expected 0 to 7, found 10{30}$"),
    ({6: [1, 2, 3]}, r"constraints\[6\]: expected at most 2 tokens up to the canvas's end, found 3$"),
    ({0: [1] * 9}, r"constraints\[0\]: expected at most 8 tokens .*, found 9$"),
    ({2: []}, r"constraints\[2\]: expected at least one token, found none$"),
    ({2: np.empty(0, int)}, r"constraints\[2\]: expected at least one token, found none$"),
    ({0: [1, 2, 3], 2: 4}, r"constraints\[2\]: overlaps another constraint$"),
    ({2: 4, 0: [1, 2, 3]}, r"constraints\[0\]: overlaps another constraint$"),
    ({0: MASK}, r"constraints\[0\]: expected fixed tokens, found the mask token$"),
    ({0: [1, MASK, 2]}, r"constraints\[0\]: expected fixed tokens, found the mask token$"),
    ({0: range(8)}, "constraints: expected to leave a mask to fill, found the whole canvas fixed$"),
    ({i: i for i in range(8)}, "constraints: expected to leave a mask to fill, found the whole canvas fixed$"),
    ({0: 64}, r"constraints\[0\]: expected a token id from 0 to 63, found 64$"),
    ({0: [3, -1]}, r"constraints\[0\].*: expected token ids from 0 to 63, found -1$"),
    ({0: "text"}, r"constraints\[0\]: text needs a tokenizer"),
    ([{}, {}], "constraints: expected one for each of 1 prompts, found 2$"),
    ([], "constraints: expected one for each of 1 prompts, found 0$"),
], ids=str)
def test_constraints_that_do_not_fit(sharp, constraints, message):
    model, _, _ = sharp
    for call in (model.generate, model.stream):
        with pytest.raises(ValueError, match=f"^{message}"):
            call(PROMPT, gen_length=GEN, constraints=constraints)


@pytest.mark.parametrize("constraints", [5, "text", b"text", [5], [None], [[0, 1]], {"0": 1}, {1.0: 1}, {True: 1}, {None: 1}, {(0, 1): 1},
                                         {0: None}, {0: 1.5}, {0: [1.5]}, {0: True}, {0: [True]}, {0: {}}, {0: ["a"]}, {0: [[1, 2], [3]]},
                                         {0: np.zeros((2, 2), int)}, {0: object()}], ids=str)
def test_constraints_of_the_wrong_kind(sharp, constraints):
    model, _, _ = sharp
    with pytest.raises(TypeError, match=r"^constraints.*: expected .*, found "):
        model.generate(PROMPT, gen_length=GEN, constraints=constraints)


def test_empty_text_is_refused(demo):
    with pytest.raises(ValueError, match=r"^constraints\[3\]: expected at least one token, found none$"):
        demo.generate("Hello", gen_length=8, constraints={3: ""})


# ---- infill: results


HOLES = [np.array([3, MASK, 9, MASK, MASK, 12]), np.array([MASK, 1]), np.array([5, 5, 5, MASK, 8, 8, 8, 8, MASK, 30, MASK])]


@pytest.mark.parametrize("cfg_scale", [0.0, 0.9])
@pytest.mark.parametrize("text", HOLES, ids=str)
def test_infill_is_the_oracle_with_one_block(sharp, text, cfg_scale):
    """From one step a mask down to one step in all, and with more steps than masks."""
    model, config, tensors = sharp
    masks = int((text == MASK).sum())
    for steps in (None, 1, 2, masks, masks + 4):
        result, seen = watched(model.infill, text, max_steps=steps, cfg_scale=cfg_scale)
        wanted, commit = denoise(tensors, config, [], text, len(text), masks if steps is None else steps, cfg_scale=cfg_scale)
        assert np.array_equal(result.sequences[0], wanted) and np.array_equal(result.commit_step[0], commit)
        assert result.n_forward == len(seen) == min(masks, steps or masks)
        for step in seen:
            assert np.array_equal(step.canvas[0][text != MASK], text[text != MASK])
        assert result.prompt_lengths == [0]
        assert (result.commit_step[0][text != MASK] == -1).all() and np.isnan(result.confidence[0][text != MASK]).all()
        assert result.finish_reason == ["length"]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9}, {"cfg_scale": 0.7}, {"temperature": 0.9, "top_p": 0.8, "cfg_scale": 0.7},
                                     {"remasking": "random"}, {"remasking": "margin"}], ids=str)
@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_texts_of_different_lengths_are_the_same_in_a_batch_as_alone(sharp, prompt, options):
    model, _, _ = sharp
    alone = [model.infill(t, prompt=prompt, seed=[20 + i], **options) for i, t in enumerate(HOLES)]
    for order in itertools.permutations(range(3)):
        together = model.infill([HOLES[i] for i in order], prompt=prompt, seed=[20 + i for i in order], **options)
        for place, i in enumerate(order):
            assert np.array_equal(together.sequences[place], alone[i].sequences[0])
            assert np.array_equal(together.commit_step[place], alone[i].commit_step[0])
            assert np.array_equal(together.confidence[place], alone[i].confidence[0], equal_nan=True)
        assert together.n_forward == max(a.n_forward for a in alone)


def test_infill_is_generate_with_constraints(sharp):
    """The same canvas, described by what is fixed instead of by its holes."""
    model, _, _ = sharp
    found = model.infill(FIXED_ANSWER, prompt=PROMPT, temperature=0.7, seed=4)
    wanted = model.generate(PROMPT, gen_length=GEN, block_length=GEN, constraints=FIXED, temperature=0.7, seed=4)
    assert np.array_equal(found.sequences[0], wanted.sequences[0])
    assert found.prompt_lengths == [len(PROMPT)]


@pytest.mark.parametrize("texts", [HOLES[0], HOLES[0].tolist(), tuple(HOLES[0]), HOLES[0][None], [HOLES[0]], [HOLES[0].tolist()],
                                   HOLES[0].astype(np.uint8)], ids=lambda t: type(t).__name__)
def test_ids_in_any_form(sharp, texts):
    model, _, _ = sharp
    assert np.array_equal(model.infill(texts).sequences[0], model.infill([HOLES[0]]).sequences[0])


def test_a_whole_text_of_masks(sharp):
    """Nothing given at all: a generation of one block. Without a prompt, all rows are the same, and so are all first choices."""
    model, config, tensors = sharp
    found = model.infill(np.full(6, MASK), max_steps=1)
    assert found.sequences[0].tolist() == oracle.forward(tensors, config, np.full(6, MASK)).argmax(1).tolist()
    assert len(set(found.sequences[0])) == 1
    found = model.infill(np.full(6, MASK), prompt=PROMPT)
    assert np.array_equal(found.sequences[0], model.generate(PROMPT, gen_length=6, block_length=6).sequences[0])


def test_parts_are_encoded_one_by_one(demo):
    """["a", 2, "b"] is the ids of "a", two masks, the ids of "b"; the text that comes back is all of it."""
    mask, encode = demo.config.mask_token_id, demo.tokenizer.encode
    ids = [*encode("The capital of France is "), *[mask] * 5, *encode(".")]
    parts, same = demo.infill(["The capital of France is ", 5, "."]), demo.infill(ids)
    assert parts.text == same.text and np.array_equal(parts.sequences[0], same.sequences[0])
    assert parts.text == [demo.tokenizer.decode(parts.sequences[0])]
    assert parts.text[0].startswith("The capital of France is ") and parts.text[0].endswith(".")
    assert np.array_equal(demo.infill([["The capital of France is ", np.int64(5), "."]]).sequences[0], parts.sequences[0])
    assert np.array_equal(demo.infill([("The capital of France is ", 5, ".")]).sequences[0], parts.sequences[0])


def test_the_whole_text_goes_on_after_an_end_token(demo):
    """An end token that is given, or drawn, in the middle does not cut what was given behind it."""
    eos = demo.config.eos_token_id
    ids = [*demo.tokenizer.encode("one"), eos, demo.config.mask_token_id, *demo.tokenizer.encode("two")]
    out = demo.infill(ids)
    assert out.text[0].startswith("one") and out.text[0].endswith("two") and out.finish_reason == ["length"]
    assert out.answer_lengths == [len(ids)]


def test_texts_in_a_batch_and_a_prompt_in_the_chat_template(demo):
    texts = [["1, ", 1, ", 3"], ["The word is ", 3, "."]]
    together = demo.infill(texts, prompt="Sort these numbers: 3, 1, 2.")
    template = demo.tokenizer.encode_chat([{"role": "user", "content": "Sort these numbers: 3, 1, 2."}])
    for text, ids, length, found in zip(texts, together.sequences, together.prompt_lengths, together.text, strict=True):
        assert length == len(template) and ids[:length].tolist() == template
        assert found == demo.infill([text], prompt="Sort these numbers: 3, 1, 2.").text[0]
        assert found.startswith(text[0]) and found.endswith(text[-1])
    plain = demo.infill(texts, prompt="Sort", chat=False)
    assert plain.prompt_lengths == [len(demo.tokenizer.encode("Sort"))] * 2


def test_a_callback_ends_an_infill(sharp):
    model, _, _ = sharp
    out = model.infill(HOLES[2], callback=lambda step: step.masks_left[0] == 1)
    assert out.finish_reason == ["cancelled"] and out.n_forward == 2 and (out.sequences[0] == MASK).sum() == 1
    assert np.array_equal(out.sequences[0][HOLES[2] != MASK], HOLES[2][HOLES[2] != MASK])


def test_end_tokens_are_drawn_or_not(sharp):
    """Other options reach the canvas: suppression, another mask token."""
    model, _, _ = sharp
    common = sorted({int(t) for t in model.infill(np.full(8, MASK)).sequences[0]})
    assert not np.isin(model.infill(np.full(8, MASK), suppress_tokens=common).sequences[0], common).any()
    out = model.infill([3, 40, 9, MASK], mask_id=40)
    assert out.sequences[0][[0, 2, 3]].tolist() == [3, 9, MASK] and out.commit_step[0].tolist()[2:] == [-1, -1]


# ---- infill: refusals


@pytest.mark.parametrize(("texts", "error", "message"), [
    ([1, 2, 3], ValueError, r"texts\[0\]: expected a mask to fill, found none"),
    ([HOLES[0], [1, 2]], ValueError, r"texts\[1\]: expected a mask to fill, found none"),
    ([], ValueError, r"texts.*: expected .*, found none"),
    ([[]], ValueError, r"texts.*: expected .*, found none"),
    ([MASK, 64], ValueError, r"texts\[0\]: expected token ids from 0 to 63, found 64$"),
    ([MASK, -1], ValueError, r"texts\[0\]: expected token ids from 0 to 63, found -1$"),
    ("text", TypeError, "texts: expected parts like .*found one text$"),
    *((value, TypeError, r"texts.*: expected .*found ")
      for value in (None, 5, 1.5, b"58", [1.5, 2], [True], {MASK: 1}, [[MASK], 5], object())),
    (["a", 1], ValueError, r"texts\[0\]\[0\]: text needs a tokenizer"),
], ids=str)
def test_texts_that_do_not_fit(sharp, texts, error, message):
    model, _, _ = sharp
    with pytest.raises(error, match=f"^{message}"):
        model.infill(texts)


@pytest.mark.parametrize(("texts", "error", "message"), [
    (["no hole"], ValueError, r"texts\[0\]: expected a mask to fill, found none"),
    (["no", "hole"], ValueError, r"texts\[0\]: expected a mask to fill, found none"),
    ([["a", 1], ["b"]], ValueError, r"texts\[1\]: expected a mask to fill, found none"),
    (["a", 0], ValueError, r"texts\[0\]\[1\]: expected 1 to \d+, found 0$"),
    (["a", -2], ValueError, r"texts\[0\]\[1\]: expected 1 to \d+, found -2$"),
    (["a", 1.0], TypeError, r"texts\[0\]\[1\]: expected a whole number, found 1.0$"),
    (["a", True], TypeError, r"texts\[0\]\[1\]: expected a whole number, found True$"),
    (["a", None], TypeError, r"texts\[0\]\[1\]: expected a whole number, found None$"),
    (["a", ["b", 1]], TypeError, r"texts\[0\]\[1\]: expected a whole number, found \['b', 1\]$"),
    ([["a", 1], 5], TypeError, r"texts\[1\]: expected .*, found 5$"),
    ([["a", 1], None], TypeError, r"texts\[1\]: expected .*, found None$"),
    ([["a", 1], []], ValueError, r"texts\[1\]: expected .*, found none"),
    (["a", 2000], ValueError, r"texts\[0\]: expected .*max_tokens \(1024\).*, found "),
], ids=str)
def test_parts_that_do_not_fit(demo, texts, error, message):
    with pytest.raises(error, match=f"^{message}"):
        demo.infill(texts)


def test_ids_beside_parts_are_ids_or_refused(demo):
    """In a batch, a list of ids next to parts must not silently become that many masks."""
    mask = demo.config.mask_token_id
    try:
        found = demo.infill([["a", 1], [3, mask, 4]], max_steps=1)
    except (TypeError, ValueError) as e:
        assert str(e).startswith("texts[1]")
    else:
        assert found.sequences[1][[0, 2]].tolist() == [3, 4] and len(found.sequences[1]) == 3


@pytest.mark.parametrize("name", ["gen_length", "block_length", "max_new_tokens"])
def test_the_text_is_the_canvas(sharp, name):
    model, _, _ = sharp
    with pytest.raises(TypeError, match=f"^{name}: the text to fill is the canvas, and one block$"):
        model.infill(HOLES[0], **{name: 4})


def test_one_prompt_for_all_texts(sharp):
    """Two are refused, not cut to the first."""
    model, _, _ = sharp
    with pytest.raises((TypeError, ValueError), match=r"^prompts?: expected .*, found 2"):
        model.infill(HOLES[:2], prompt=[[1, 2], [3, 4]])


def test_steps_is_max_steps(sharp):
    """An alias that generate has, in the words of generate."""
    model, _, _ = sharp
    for steps in (1, 2):
        assert np.array_equal(model.infill(HOLES[0], steps=steps).sequences[0], model.infill(HOLES[0], max_steps=steps).sequences[0])
