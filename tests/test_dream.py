"""Dream: logits against the float64 forward of dream.py, whole generations, caches, malformed folders."""
from __future__ import annotations

import json
import re
from dataclasses import replace

import dream
import folders
import loops
import numpy as np
import oracle
import pytest
from comparisons import assert_bits_in_any_company, assert_close, assert_mapped_as_packed
from dream import EOS, MASK
from methods import CASES, PARTS, lengths
from policies import POLICIES, WINDOWED, by_hand
from scipy.special import log_softmax

from llada_native import InferTask, LLaDAForCausalLM, ModelConfig, ModelFormatError, UnsupportedModelError, _native, selectors, windows
from llada_native.backend import tensor_specs
from llada_native.checkpoint import tensor_name

MATRIX = [  # MHA, GQA and MQA; tied and untied; odd widths
    {"num_key_value_heads": 4}, {}, {"num_key_value_heads": 1, "tie_word_embeddings": True}, {"tie_word_embeddings": True},
    {"hidden_size": 264, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 300, "num_hidden_layers": 1},
    {"hidden_size": 40, "num_attention_heads": 20, "num_key_value_heads": 5, "intermediate_size": 51, "num_hidden_layers": 3},
]


@pytest.mark.parametrize("changes", MATRIX)
def test_matches_the_oracle(tmp_path, isa, changes):
    c = dream.config(**changes)
    folder, tensors = dream.written(tmp_path, c)
    model = LLaDAForCausalLM(folder, isa=isa)
    for n in (1, 7, 31, 32, 33, 128):
        assert_close(model.forward(dream.ids_of(n)), dream.forward(tensors, c, dream.ids_of(n)))


@pytest.mark.parametrize("changes", MATRIX)
def test_reference_backend_matches_the_oracle(tmp_path, changes):
    c = dream.config(**changes)
    folder, tensors = dream.written(tmp_path, c)
    model = LLaDAForCausalLM(folder, backend="reference")
    for n in (1, 2, 33):
        assert_close(model.forward(dream.ids_of(n)), dream.forward(tensors, c, dream.ids_of(n)), 2 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("mutation", [
    "no shift", "shift the other way", "shift around the end", "no bias", "no bias of queries", "no bias of keys", "no bias of values",
    "biases of keys and values swapped", "bias in the last layer only", "bias after rope", "interleaved kv heads", "causal"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_mistake_would_be_seen(tmp_path, backend, mutation):
    c = dream.config()
    folder, tensors = dream.written(tmp_path, c)
    if mutation == "no bias of keys":  # nothing that a softmax sees, if it were not rotated
        tensors = {name: 8 * t if name.endswith("k_proj.bias") else t for name, t in tensors.items()}
        folders.write(tmp_path, c, tensors)
    ids = dream.ids_of(33)
    with pytest.raises(AssertionError, match="of the largest logit"):
        assert_close(LLaDAForCausalLM(folder, backend=backend).forward(ids), dream.forward(tensors, c, ids, mutation), 1e-3)


def test_logits_are_those_of_positions(tmp_path):
    """Of one sequence, a batch, a batch with padding, and sequences of any lengths."""
    c = dream.config()
    folder, tensors = dream.written(tmp_path, c)
    model = LLaDAForCausalLM(folder)
    rows = [dream.ids_of(9), dream.ids_of(5, 1), dream.ids_of(1, 2)]
    wanted = [dream.forward(tensors, c, row) for row in rows]
    for found, logits in zip(model.forward(rows), wanted, strict=True):
        assert_close(found, logits)
    assert_close(model.forward_logits_batch([rows[0]])[0], wanted[0])
    padded, kept = np.zeros((3, 9), int), np.zeros((3, 9), int)
    for row, keep, ids in zip(padded, kept, rows, strict=True):
        row[-len(ids):], keep[-len(ids):] = ids, 1
    for found, logits in zip(model.forward_logits_batch(padded, kept), wanted, strict=True):
        assert_close(found[-len(logits):], logits)
        assert not found[:-len(logits)].any()


# ---- formats, and rows in company

FORMATS = ("float32", "bfloat16", "float16", "bfloat16_fast", "int8", "int4")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float_formats_hold_the_rounded_weights(tmp_path, isa, dtype):
    """Of all matrices; vectors stay float32."""
    c = dream.config()
    folder, tensors = dream.written(tmp_path, c)
    held = {n: t if t.ndim == 1 else t.astype(folders.DTYPES[dtype]).astype(np.float32) for n, t in tensors.items()}
    assert_close(LLaDAForCausalLM(folder, dtype=dtype, isa=isa).forward(dream.ids_of(33)), dream.forward(held, c, dream.ids_of(33)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "group", "error"), [("int8", 128, 0.05), ("int8", 32, 0.04), ("int4", 32, 0.3), ("int4", 128, 0.4)])
def test_integers_are_near(tmp_path, isa, tied, dtype, group, error):
    """The tolerances of test_quantized: the noise of rounding alone."""
    c = dream.config(tie_word_embeddings=tied)
    folder, tensors = dream.written(tmp_path, c)
    wanted = dream.forward(tensors, c, dream.ids_of(40))
    found = LLaDAForCausalLM(folder, dtype=dtype, group_size=group, isa=isa).forward(dream.ids_of(40))
    assert 1e-4 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < error


@pytest.mark.parametrize("dtype", FORMATS)
def test_rows_are_bit_identical(isa, dtype):
    """Alone, in batches of any order, at any number of threads, and selected."""
    model = LLaDAForCausalLM.random(dream.config(hidden_size=264, num_attention_heads=3, num_key_value_heads=1), dtype, isa=isa,
                                    num_threads=1, group_size=32)
    assert_bits_in_any_company(model, [dream.ids_of(n, n) for n in (33, 1, 128, 64, 7)])


def test_biases_of_nothing_change_no_bit(isa):
    """x + 0 is x: the same weights with and without biases."""
    config = ModelConfig.from_dict(dream.config())
    with_bias, without = (_native.NativeModel(replace(config, qkv_bias=bias), "float32", 2, isa) for bias in (True, False))
    c = dream.config()
    for spec in tensor_specs(config):
        tensor = dream.tensors(c)[tensor_name(spec, "DreamModel")]
        with_bias.load(spec.role, spec.layer, 0, 0 * tensor if spec.role.endswith("bias") else tensor)
        if not spec.role.endswith("bias"):
            without.load(spec.role, spec.layer, 0, tensor)
    inputs = dream.ids_of(40).astype(np.int32), np.array([40], np.int32), np.arange(40, dtype=np.int32)
    assert np.array_equal(with_bias.hidden(*inputs), without.hidden(*inputs))


@pytest.mark.parametrize("dtype", FORMATS)
def test_mapped_weights_are_the_packed_ones(tmp_path, isa, dtype):
    folder, _ = dream.written(tmp_path / "model", dream.config())
    assert_mapped_as_packed(folder, tmp_path / "cache", dream.ids_of(20), dtype=dtype, isa=isa, group_size=32)


# ---- generation: the reference sampler, and Dream's own

@pytest.fixture(scope="module", params=[0, 1])
def sharp(request, tmp_path_factory):
    """(model, config, tensors) of a tiny model some of whose predictions are sure."""
    c = dream.config()
    tensors = dream.tensors(c, request.param)
    tensors["model.norm.weight"] *= 4
    return LLaDAForCausalLM(folders.write(tmp_path_factory.mktemp("dream"), c, tensors)), c, tensors


@pytest.fixture(scope="module")
def model(sharp):
    return sharp[0]


def logits_of(c, tensors):
    """What `oracle.generate` asks for."""
    def logits(x, attention):
        out = np.zeros((*x.shape, c["vocab_size"]))
        for row, keep, target in zip(x, attention.astype(bool), out, strict=True):
            target[keep] = dream.forward(tensors, c, row[keep])
        return out
    return logits


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 0.8}, {"logits_eos_inf": True}, {"confidence_eos_eot_inf": True}], ids=repr)
@pytest.mark.parametrize(("steps", "gen", "block"), [(16, 16, 8), (6, 16, 16), (24, 24, 8), (8, 24, 24)])
def test_the_reference_sampler_over_shifted_logits(sharp, options, steps, gen, block):
    model, c, tensors = sharp
    prompts = [dream.ids_of(5), dream.ids_of(1, 1), dream.ids_of(9, 2)]
    wanted, forwards = oracle.generate(logits_of(c, tensors), [list(p) for p in prompts], steps, gen, block, mask_id=MASK, eos_id=EOS,
                                       eot_id=56, **options)
    out = model.generate(prompts, max_steps=steps, gen_length=gen, block_length=block, eot_id=56, **options)
    for found, row, prompt in zip(out.sequences, wanted, prompts, strict=True):
        assert found.tolist() == row[9 - len(prompt):].tolist()
    assert out.n_forward == forwards and out.rows_computed == (2 if "cfg_scale" in options else 1) * forwards * (15 + 3 * gen)


def dream_scores(logits, order):
    p = oracle.softmax(logits)
    if order == "entropy":
        return (p * np.log(p)).sum(1)
    top = np.sort(p, axis=1)
    return top[:, -1] - top[:, -2] if order == "margin" else top[:, -1]


@pytest.mark.parametrize("order", ["low_confidence", "entropy", "margin"])
@pytest.mark.parametrize("steps", [24, 10, 5])
def test_the_orders_of_dream(sharp, order, steps):
    """`maskgit_plus`, `entropy` and `topk_margin` over the whole canvas, with equal shares of the steps."""
    model, c, tensors = sharp
    prompt, gen = dream.ids_of(6), 24
    x, shares = np.array([*prompt, *[MASK] * gen]), [gen // steps + (i < gen % steps) for i in range(steps)]
    for share in shares:
        masked = np.flatnonzero(x == MASK)
        logits = dream.forward(tensors, c, x)[masked]
        chosen = np.argsort(-dream_scores(logits, order), kind="stable")[:share]
        x[masked[chosen]] = logits.argmax(1)[chosen]
    out = model.generate(prompt, max_steps=steps, gen_length=gen, block_length=gen, remasking=order)
    assert out.sequences[0].tolist() == x.tolist() and out.n_forward == steps


def test_as_its_authors_run_it(model):
    """Temperature .2, top_p .95, by entropy, one block: repeated by its seed, alone and in company."""
    options = {"gen_length": 16, "block_length": 16, "max_steps": 16, "remasking": "entropy", "temperature": 0.2, "top_p": 0.95}
    alone = model.generate(dream.ids_of(5), seed=[3], **options)
    together = model.generate([dream.ids_of(9, 1), dream.ids_of(5)], seed=[1, 3], **options)
    assert together.sequences[1].tolist() == alone.sequences[0].tolist() and MASK not in alone.sequences[0]


def test_backends_generate_the_same(tmp_path):
    folder, _ = dream.written(tmp_path, dream.config())
    found = [LLaDAForCausalLM(folder, backend=b).generate([7, 8, 9], gen_length=16, block_length=8) for b in ("native", "reference")]
    assert found[0].sequences[0].tolist() == found[1].sequences[0].tolist()


@pytest.mark.parametrize("text", [[MASK, MASK, 3, 4], [MASK, 2, MASK, MASK, 5], [1, MASK, MASK, 7], [MASK], [1, 2, 3, MASK], [MASK] * 6],
                         ids=repr)
@pytest.mark.parametrize("cache", ["none", "delayed:refresh_every=1", "dual", "delayed"])
def test_masks_at_the_beginning_and_in_the_middle(sharp, text, cache):
    """The first row predicts the first token and the second. A text is one block, of which `delayed` alone does not compute all."""
    model, c, tensors = sharp
    x, passes = np.array(text), 0
    while (masked := np.flatnonzero(x == MASK)).size:
        logits, passes = dream.forward(tensors, c, x)[masked], passes + 1
        logits[:, MASK] = -np.inf
        best = oracle.softmax(logits).max(1).argmax()
        x[masked[best]] = logits[best].argmax()
    out = model.infill(np.array(text), cache=cache, suppress_tokens=[MASK])
    assert out.n_forward == passes
    if cache != "delayed":
        assert out.sequences[0].tolist() == x.tolist()
    assert (out.sequences[0] != MASK).all() and out.rows_computed == sum(out.trace.passes["rows"])


@pytest.mark.parametrize("batch", [[[MASK, MASK, 3], [1, MASK]], [[MASK] * 5, [MASK, MASK], [4, MASK, MASK, MASK]]])
def test_rows_that_serve_two_positions_in_a_batch(model, batch):
    together = model.infill([np.array(text) for text in batch], cfg_scale=0.5)
    for text, ids, confidence in zip(batch, together.sequences, together.confidence, strict=True):
        alone = model.infill(np.array(text), cfg_scale=0.5)
        assert ids.tolist() == alone.sequences[0].tolist() and confidence.tobytes() == alone.confidence[0].tobytes()


def test_scores_read_the_row_before(sharp):
    """An answer of one token is scored exactly."""
    model, c, tensors = sharp
    for prompt, answer in ((dream.ids_of(1), 7), (dream.ids_of(6), 20)):
        logits = dream.forward(tensors, c, np.array([*prompt, MASK]))
        without = dream.forward(tensors, c, np.array([MASK] * (len(prompt) + 1)))
        for scale, wanted in ((0, logits), (0.7, without + 1.7 * (logits - without))):
            [found] = model.score(prompt, np.array([answer]), mc_num=1, cfg_scale=scale)
            assert found == pytest.approx(log_softmax(wanted[-1])[answer], abs=1e-4)


# ---- whole generations against the loops of other methods

def shifted(look):
    """The loops see logits of positions: those of the row before."""
    def aligned(ids, places=None, beside=()):
        logits = look(ids, places, beside)
        return np.concatenate([logits[:1], logits[:-1]])
    return aligned


@pytest.mark.parametrize("case", [name for name in CASES if "wino" not in name])
def test_methods(model, case):
    options, loop, parameters = CASES[case]
    for seed in (3, 8):
        prompt = np.random.default_rng(seed).integers(0, 50, 11)
        out = model.generate(prompt, gen_length=24, block_length=8, **options)
        ids, passes, rows = loop(shifted(loops.looking(model)), prompt, 24, 8, MASK, *parameters)
        assert out.sequences[0].tolist() == ids.tolist()
        assert (out.n_forward, out.rows_computed) == (passes, rows)


@pytest.mark.parametrize("canvas", [windows.Grow(start=6, step=3, most=20, check=4, enough=0.2, sure=0.5, doubt=0.5),
                                    windows.Grow(start=14, step=3, most=40, check=2, enough=0.45, sure=0.6, doubt=0.9)], ids=repr)
def test_an_answer_that_grows(model, canvas):
    prompt, look = np.random.default_rng(5).integers(0, 50, 7), shifted(loops.looking(model))
    end_token = int(np.bincount(look(loops.starting(prompt, canvas.start, MASK))[7:].argmax(1)).argmax())
    out = model.generate(prompt, canvas=canvas, block_length=4, selector=selectors.Threshold(0.5), eos_id=end_token)
    ids, passes, rows = loops.grow(look, prompt, 4, MASK, end_token, 0.5, canvas.start, canvas.step, canvas.most, canvas.check,
                                   canvas.enough, canvas.sure, canvas.doubt)
    assert out.sequences[0].tolist() == ids.tolist() and (out.n_forward, out.rows_computed) == (passes, rows)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("tau", [0.05, 0.6])
def test_caches_against_a_loop_by_hand(model, policy, tau):
    """The rows before masks are computed too, and counted."""
    for prompt in (np.random.default_rng(7).integers(0, 50, 11), np.array([9])):
        ids, passes, rows = by_hand(model, prompt, 24, 8, tau, policy, MASK, shifted=True)
        out = model.generate(prompt, gen_length=24, block_length=8, selector=selectors.Threshold(tau), cache=policy)
        assert out.sequences[0].tolist() == ids.tolist() and (out.n_forward, out.rows_computed) == (passes, rows)
        assert out.trace.passes["rows"].sum() == rows


@pytest.mark.parametrize("policy", WINDOWED, ids=repr)
def test_windows_with_caches_against_a_loop_by_hand(model, policy):
    prompt, canvas, kept = np.random.default_rng(3).integers(0, 50, 11), windows.SuffixWindow(20, 1.0, 1.5), []
    for block in range(4):
        end = 11 + 8 * (block + 1)
        behind = np.arange(end, min(43, end + 20))
        draws = np.random.default_rng([0, block]).random(len(behind))
        kept.append(np.array([*range(end), *behind[draws < 1.5 * np.exp(-0.5 * ((behind - end) / 19) ** 2) / np.sqrt(2 * np.pi)]]))
    ids, passes, rows = by_hand(model, prompt, 32, 8, 0.3, policy, MASK, kept, shifted=True)
    out = model.generate(prompt, gen_length=32, block_length=8, selector=selectors.Threshold(0.3), cache=policy, canvas=canvas)
    assert out.sequences[0].tolist() == ids.tolist() and (out.n_forward, out.rows_computed) == (passes, rows)


UNVERIFIED = [options for options in PARTS if not getattr(options.get("editor"), "verifies", False)]


@pytest.mark.parametrize("options", UNVERIFIED, ids=repr)
@pytest.mark.parametrize("cache", ["prefix", "dual", "delayed"])
def test_always_refreshed_is_no_cache(model, options, cache):
    """The same bits: tokens, the passes that wrote them, and how sure they were."""
    wanted = model.generate([3, 1, 4, 1, 5], block_length=8, **lengths(options))
    found = model.generate([3, 1, 4, 1, 5], block_length=8, cache=f"{cache}:refresh_every=1", **lengths(options))
    for name in ("sequences", "commit_step", "confidence"):
        assert getattr(found, name)[0].tobytes() == getattr(wanted, name)[0].tobytes(), name
    assert (found.n_forward, found.rows_computed) == (wanted.n_forward, wanted.rows_computed)


@pytest.mark.parametrize("options", UNVERIFIED, ids=repr)
@pytest.mark.parametrize("cache", ["none", "dual:vicinity=(2,2)", "delayed"])
def test_a_batch_gives_what_each_gives_alone(model, options, cache):
    prompts = [[1, 2, 3], [4] * 9, [5]]
    together = model.generate(prompts, block_length=8, cache=cache, **lengths(options))
    for r, prompt in enumerate(prompts):
        alone = model.generate(prompt, block_length=8, cache=cache, **lengths(options))
        assert together.sequences[r].tobytes() == alone.sequences[0].tobytes()
        assert together.confidence[r].tobytes() == alone.confidence[0].tobytes()


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "delayed"])
def test_guidance_of_next_to_nothing_changes_nothing(model, cache):
    options = {"gen_length": 24, "block_length": 8, "selector": "threshold:tau=0.5", "cache": cache}
    plain = model.generate([1, 2, 3], **options)
    guided = model.generate([1, 2, 3], cfg_scale=1e-30, **options)
    assert guided.sequences[0].tolist() == plain.sequences[0].tolist() and guided.rows_computed == 2 * plain.rows_computed


@pytest.mark.parametrize("options", [{"preset": "fast"}, {"preset": "balanced"}, {"early_stop": True, "cache": "delayed"}], ids=repr)
def test_presets(model, options):
    out = model.generate([[7, 8, 9], [3]], gen_length=32, block_length=8, **options)
    assert all(MASK not in ids for ids in out.sequences)


def test_a_test_in_place_of_a_token_is_refused(model):
    """Its row would be the one behind a token that has been seen."""
    for call in (lambda: model.generate([1, 2, 3], gen_length=8, editor="wino"), lambda: model.infill(np.array([1, MASK]), editor="wino")):
        with pytest.raises(ValueError, match=r"^editor: Wino.* DreamModel predicts it in the row before.*expected another editor$"):
            call()


# ---- tasks

@pytest.mark.parametrize("options", [{}, {"block_length": 4}, {"cache": "dual"}, {"cfg_scale": 0.5}, {"temperature": 0.7, "seed": 5}])
def test_tasks_give_what_generate_gives(model, options):
    task = InferTask("x", [3, 1, 4], 8, **options)
    while not task.finished:
        [token] = model.batch_infer_one_round([task])
        task.next(token)
    out = model.generate([3, 1, 4], max_steps=8, gen_length=8, **{**options, **({"seed": [5]} if "seed" in options else {})})
    assert task.sequence.tolist() == out.sequences[0].tolist()


@pytest.mark.parametrize("gen", [1, 8])
@pytest.mark.parametrize("pos", [1, 4, 5, 6])
def test_a_task_behind_a_cache(sharp, pos, gen):
    """Where a mask stands behind what the cache is asked for, the row before it is computed again: with fresh keys that is exact."""
    model, c, tensors = sharp
    prompt = dream.ids_of(6)
    first, second = InferTask("a", prompt, gen), InferTask("b", prompt, gen)
    cache = model.create_kv_cache()
    first.bind_kvcache(cache)
    model.batch_infer_one_round([first])
    second.bind_kvcache(first.release_kvcache(), pos)
    model.batch_infer_one_round([second])
    assert (second.pending_position, second.pending_token) == (first.pending_position, first.pending_token)
    assert second.pending_confidence == pytest.approx(first.pending_confidence, rel=1e-5)
    masked = np.flatnonzero(second.sequence == MASK)
    logits = dream.forward(tensors, c, second.sequence)[masked]
    assert second.pending_token == logits[oracle.softmax(logits).max(1).argmax()].argmax()


# ---- sizes and names

def test_every_tensor_is_counted():
    for changes in MATRIX:
        c = dream.config(**changes)
        config = ModelConfig.from_dict(c)
        named = {tensor_name(s, "DreamModel"): s.shape for s in tensor_specs(config)}
        assert named == dream.shapes(c) and config.n_parameters() == sum(int(np.prod(shape)) for shape in named.values())


def test_dream_has_the_published_size():
    """That of Qwen2.5-7B, and the tokens that the class knows where config.json does not say."""
    config = ModelConfig.from_dict(dream.config(
        hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944, vocab_size=152064,
        max_position_embeddings=131072, mask_token_id=None, eos_token_id=None))
    assert config.head_dim == 128 and (config.mask_token_id, config.eos_token_id) == (151666, 151643)
    assert config.qkv_bias and config.shifted_logits and config.n_parameters() == 7_615_616_512


def test_other_families_have_neither():
    config = ModelConfig.from_dict(folders.config())
    assert not config.qkv_bias and not config.shifted_logits and config.eos_token_id == EOS
    assert ModelConfig.from_dict(dream.config(mask_token_id=None, eos_token_id=None)).mask_token_id is None  # beyond this vocabulary


def test_the_end_of_a_turn(tmp_path):
    """ChatML's, from the tokenizer's configuration."""
    folder, _ = dream.written(tmp_path, dream.config())
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {
        "55": {"content": "<|eot_id|>", "special": True}, "56": {"content": "<|im_end|>", "special": True}}}))
    out = LLaDAForCausalLM(folder).generate([1, 2], gen_length=4, constraints={1: 56})
    assert out.finish_reason == ["stop"] and out.answer_lengths[0] <= 1


# ---- malformed folders

@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act = 'gelu' is not supported: expected 'silu'"),
    ({"attention_bias": False}, UnsupportedModelError, "attention_bias = False is not supported: expected True or None"),
    ({"mlp_bias": True}, UnsupportedModelError, "mlp_bias = True is not supported"),
    ({"use_sliding_window": True}, UnsupportedModelError, "use_sliding_window = True is not supported"),
    ({"rope_scaling": {"type": "yarn", "factor": 4}}, UnsupportedModelError, "rope_scaling = .* is not supported: expected None"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, UnsupportedModelError, "rope_parameters.rope_type = 'yarn' is not"),
    ({"rope_parameters": {"rope_theta": 1e3}}, ModelFormatError, r"rope_parameters.rope_theta: expected rope_theta \(.*\), found 1000"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedModelError, "partial_rotary_factor = 0.5 is not supported"),
    ({"quantization_config": {"bits": 4}}, UnsupportedModelError, "quantization_config = .* is not supported"),
    ({"head_dim": 16}, ModelFormatError, r"head_dim: expected hidden_size / num_attention_heads \(8\), found 16"),
    ({"num_key_value_heads": 3}, ModelFormatError, r"num_key_value_heads: expected a divisor of num_attention_heads \(4\), found 3"),
    ({"num_key_value_heads": None}, ModelFormatError, "num_key_value_heads: expected a whole number"),
    ({"mask_token_id": 64}, ModelFormatError, "mask_token_id: expected a token id from 0 to 63, found 64"),
    ({"eos_token_id": -1}, ModelFormatError, "eos_token_id: expected a token id from 0 to 63, found -1"),
    ({"rope_theta": None}, ModelFormatError, "rope_theta: expected a number above 0"),
    ({"tie_word_embeddings": None}, ModelFormatError, "tie_word_embeddings: expected true or false"),
])
def test_what_dream_has_not(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        LLaDAForCausalLM(folders.write(tmp_path, dream.config(**changes), dream.tensors(dream.config())))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
                                 "vocab_size", "max_position_embeddings", "rope_theta", "rms_norm_eps", "tie_word_embeddings",
                                 "hidden_act"])
def test_nothing_is_guessed(tmp_path, key):
    c = dream.config()
    del c[key]
    with pytest.raises(ModelFormatError, match=f"required key '{key}' is missing"):
        LLaDAForCausalLM(folders.write(tmp_path, c, dream.tensors(dream.config())))


ATTENTION = "model.layers.1.self_attn"
DAMAGES = {
    "no bias": (lambda t: {n: v for n, v in t.items() if n != f"{ATTENTION}.k_proj.bias"},
                rf"1 missing \({re.escape(ATTENTION)}\.k_proj\.bias\)"),
    "a bias of the output": (lambda t: t | {f"{ATTENTION}.o_proj.bias": np.zeros(32, np.float32)},
                             rf"1 unexpected \({re.escape(ATTENTION)}\.o_proj\.bias\)"),
    "a bias of all heads for keys": (lambda t: t | {f"{ATTENTION}.k_proj.bias": np.zeros(32, np.float32)},
                                     r"k_proj\.bias: expected shape \(16,\), found \(32,\)"),
    "a bias that is a matrix": (lambda t: t | {f"{ATTENTION}.q_proj.bias": np.zeros((1, 32), np.float32)},
                                r"q_proj\.bias: expected shape \(32,\), found \(1, 32\)"),
    "a norm of queries": (lambda t: t | {f"{ATTENTION}.q_norm.weight": np.ones(8, np.float32)}, "1 unexpected"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_tensors_that_do_not_fit(tmp_path, backend, damage):
    change, message = DAMAGES[damage]
    with pytest.raises(ModelFormatError, match=message):
        LLaDAForCausalLM(folders.write(tmp_path, dream.config(), change(dream.tensors(dream.config()))), backend=backend)


def test_shards_give_the_same_model(tmp_path):
    logits = [LLaDAForCausalLM(dream.written(tmp_path / str(n), dream.config(), shards=n)[0]).forward(dream.ids_of(9)) for n in (1, 3)]
    assert np.array_equal(*logits)


@pytest.mark.parametrize(("tensor", "layer", "rows", "message"), [
    ("q_bias", 2, 32, "layer 2 of a model that has 2"), ("k_bias", 0, 32, "rows 0 to 32 of a tensor that has 16")])
def test_biases_that_the_engine_has_not(tensor, layer, rows, message):
    model = _native.NativeModel(ModelConfig.from_dict(dream.config()), "float32", 1)
    with pytest.raises(ValueError, match=message):
        model.load(tensor, layer, 0, np.zeros(rows, np.float32))
    without = _native.NativeModel(ModelConfig.from_dict(folders.config()), "float32", 1)
    with pytest.raises(ValueError, match=r"of a tensor that has 0|layer 2"):
        without.load(tensor, layer, 0, np.zeros(rows, np.float32))
