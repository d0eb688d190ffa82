"""Whole generations: token ids against a plain port of the reference sampler, distributions, seeds, results."""
import itertools
from concurrent.futures import ThreadPoolExecutor

import folders
import numpy as np
import oracle
import pytest
from scipy import stats
from scipy.special import softmax

from llada_native import GenerationOptions, InferTask, LLaDAForCausalLM, NonFiniteLogitsError

GEN = 8
MASK = 58
SCHEDULES = [(block, steps) for block in (2, 4, 8) for steps in (1, 2, 3, 4, 5, 8, 12, 16) if steps % (GEN // block) == 0]
FALSE_ALARM = 1e-4


@pytest.fixture(scope="module")
def model(tiny):
    return LLaDAForCausalLM.from_pretrained(tiny[0])


@pytest.fixture(scope="module")
def ends(model):
    """The two tokens that this model likes best, so that rules about end tokens have something to do."""
    canvas = np.full(40, model.config.mask_token_id)
    canvas[:12] = np.random.default_rng(0).integers(0, 60, 12)
    return [int(t) for t in np.bincount(model.forward(canvas).argmax(1)).argsort()[::-1][:2]]


def prompts_of(batch):
    rng = np.random.default_rng(batch)
    return [rng.integers(0, 55, n) for n in ([9] if batch == 1 else [9, 3, 14])]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
@pytest.mark.parametrize(("logits_eos_inf", "confidence_flag"), list(itertools.product([False, True], [False, True, "compat"])))
def test_token_ids_equal_the_reference(tiny, model, ends, batch, cfg_scale, logits_eos_inf, confidence_flag):
    """Every schedule, at temperature 0, where "compat" and True are one rule."""
    _, config, tensors = tiny
    prompts = prompts_of(batch)
    eos, eot = ends
    special = {"eos_id": eos, "eot_id": eot, "mask_id": config["mask_token_id"]}
    for block, steps in SCHEDULES:
        wanted, forwards = oracle.generate(oracle.padded_logits(tensors, config), prompts, steps, GEN, block, **special,
                                           cfg_scale=cfg_scale, logits_eos_inf=logits_eos_inf,
                                           confidence_eos_eot_inf=bool(confidence_flag))
        found = model.generate(prompts, max_steps=steps, gen_length=GEN, block_length=block, cfg_scale=cfg_scale, **special,
                               logits_eos_inf=logits_eos_inf, confidence_eos_eot_inf=confidence_flag)
        for prompt, ours, theirs in zip(prompts, found.sequences, wanted, strict=True):
            assert np.array_equal(ours[len(prompt):], theirs[-GEN:]), (block, steps)
            assert np.array_equal(ours[:len(prompt)], prompt)
        assert found.n_forward == min(forwards, GEN)  # steps with an empty quota cost nothing


def test_flags_change_something(model, ends):
    """The combinations above are not one test repeated."""
    eos, eot = ends
    arguments = {"gen_length": GEN, "block_length": 8, "max_steps": 8, "eos_id": eos, "eot_id": eot}
    runs = [model.generate(prompts_of(3), **arguments, **flags).sequences for flags in
            ({}, {"logits_eos_inf": True}, {"confidence_eos_eot_inf": True}, {"cfg_scale": 0.7})]
    for a, b in itertools.combinations(runs, 2):
        assert not all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_mask_tokens_in_the_prompt_follow_the_reference(tiny, model):
    """They are eligible and consume the block's quota, so masks can remain at the end."""
    _, config, tensors = tiny
    mask = config["mask_token_id"]
    prompt = np.array([1, 2, mask, 4, mask, 6])
    wanted, _ = oracle.generate(oracle.padded_logits(tensors, config), [prompt], 4, 8, 4, mask_id=mask, eos_id=57, eot_id=58)
    found = model.generate(prompt, gen_length=8, block_length=4, max_steps=4)
    assert np.array_equal(found.sequences[0], wanted[0])
    assert (found.commit_step[0] == -1).sum() == (found.sequences[0][6:] == mask).sum() > 0


def test_compat_differs_from_the_intended_rule_above_temperature_zero(model, ends):
    eos, eot = ends
    options = {"gen_length": 8, "block_length": 8, "temperature": 0.8, "seed": 1, "eos_id": eos, "eot_id": eot}
    compat, intended = (model.generate([prompts_of(1)[0]] * 20, confidence_eos_eot_inf=flag, **options) for flag in ("compat", True))
    confidence = {flag: np.concatenate([c[s[-8:] == eos] for c, s in zip(r.confidence, r.sequences, strict=True)])
                  for flag, r in (("compat", compat), ("intended", intended))}
    assert (confidence["intended"] == 0).all() and (confidence["compat"] > 0).all()


def test_guidance_ignores_the_padding(model):
    """With and without an attention mask: padding that is dropped is the same as no padding."""
    prompt = prompts_of(1)[0]
    padded = np.concatenate([[3, 3, 3], prompt])
    mask = np.concatenate([[0, 0, 0], np.ones(len(prompt), int)])
    options = {"cfg_scale": 1.0, "gen_length": 8, "block_length": 4}
    with_mask = model.generate(padded[None], attention_mask=mask[None], **options)
    assert np.array_equal(with_mask.sequences[0], model.generate(prompt, **options).sequences[0])


def test_tokens_of_a_generation_follow_softmax(tiny, model):
    """End to end: one-token answers of 3,000 prompts with their own seeds, against the oracle's probabilities."""
    _, config, tensors = tiny
    prompt = prompts_of(1)[0]
    temperature = 1.5
    canvas = np.append(prompt, config["mask_token_id"])
    wanted = softmax(oracle.forward(tensors, config, canvas)[-1] / temperature)
    found = model.generate([prompt] * 3000, gen_length=1, temperature=temperature, seed=list(range(3000)))
    counts = np.bincount([s[-1] for s in found.sequences], minlength=len(wanted))
    assert (wanted * 3000 >= 5).all()  # the usual condition of the test
    assert stats.chisquare(counts, wanted * 3000).pvalue > FALSE_ALARM


@pytest.mark.parametrize("options", [{"temperature": 0.9}, {"temperature": 0.9, "cfg_scale": 0.5}, {"remasking": "random"}])
def test_a_seed_gives_the_same_answer_alone_and_in_any_batch(model, options):
    prompts = prompts_of(3)
    options = {"gen_length": 8, "block_length": 4, **options}
    alone = [model.generate(p, seed=[100 + i], **options) for i, p in enumerate(prompts)]
    for order in itertools.permutations(range(3)):
        together = model.generate([prompts[i] for i in order], seed=[100 + i for i in order], **options)
        for place, i in enumerate(order):
            assert np.array_equal(together.sequences[place], alone[i].sequences[0])
            assert np.array_equal(together.confidence[place], alone[i].confidence[0], equal_nan=True)
    assert any(not np.array_equal(model.generate(p, seed=[7], **options).sequences[0], a.sequences[0])
               for p, a in zip(prompts, alone, strict=True))
    first = model.generate(prompts, seed=5, **options)
    assert all(np.array_equal(a, b) for a, b in zip(first.sequences, model.generate(prompts, seed=5, **options).sequences, strict=True))


def test_random_remasking_reveals_in_random_order(model):
    """Of 16 positions each comes first about equally often."""
    found = model.generate([prompts_of(1)[0]] * 1600, gen_length=16, block_length=16, remasking="random", seed=0)
    first = np.bincount([int(np.argmin(c)) for c in found.commit_step], minlength=16)
    assert stats.chisquare(first).pvalue > FALSE_ALARM


def test_reference_backend_generates_the_same(tiny, model):
    slow = LLaDAForCausalLM.from_pretrained(tiny[0], backend="reference")
    for options in ({}, {"cfg_scale": 0.7}, {"temperature": 0.7, "seed": 2}):
        a, b = (m.generate(prompts_of(3), gen_length=8, block_length=4, **options) for m in (model, slow))
        assert [x.tolist() for x in a.sequences] == [x.tolist() for x in b.sequences]
        assert (a.backend, b.backend) == ("native", "reference")


def test_result_describes_the_run(demo):
    out = demo.generate(["What is 17 plus 25?", "Sort these numbers: 5, 1, 3."])
    assert out.text == ["17 + 25 = 42", "1, 3, 5"] and str(out) == "17 + 25 = 42\n1, 3, 5"
    assert out.finish_reason == ["stop", "stop"] and out.backend == "native" and out.n_forward == 64
    for sequence, length, steps, confidence in zip(out.sequences, out.prompt_lengths, out.commit_step, out.confidence, strict=True):
        assert sequence.dtype == np.int32 and len(sequence) == length + 64
        assert sorted(steps) == list(range(64))  # one token a step
        assert ((confidence > 0) & (confidence <= 1)).all()
    assert out.tokens_per_second > 0 and out.timings["total"] >= out.timings["forward"] > 0
    assert out.rows_computed == 64 * sum(len(s) for s in out.sequences)
    assert "backend='native'" in repr(out)


def test_a_result_is_equal_to_itself_alone(model):
    first, second = (model.generate([1, 2, 3], gen_length=4) for _ in range(2))
    assert first == first and first != second and first in [second, first] and len({first, second}) == 2


def test_finish_reason_length(demo):
    out = demo.generate("Write a story about a cat, a hill and a key.", gen_length=16, block_length=16)
    assert out.finish_reason == ["length"] and out.text[0].startswith("Once")


def test_prompt_forms_agree(demo):
    text = "What is 17 plus 25?"
    ids = demo.tokenizer.encode_chat([{"role": "user", "content": text}])
    wanted = demo.generate(text).sequences[0]
    for prompt in ([text], [{"role": "user", "content": text}], [[{"role": "user", "content": text}]], ids, np.array(ids),
                   np.array([ids]), [np.array(ids)], [ids]):
        assert np.array_equal(demo.generate(prompt).sequences[0], wanted)
    plain = demo.generate(text, chat=False)
    assert plain.prompt_lengths[0] == len(demo.tokenizer.encode(text)) < len(ids)


def test_special_tokens_in_a_message_are_plain_text(demo):
    ids = demo.tokenizer.encode_chat([{"role": "user", "content": "a<|eot_id|>b<|mdm_mask|>"}])
    assert ids.count(demo.tokenizer.token_id("<|eot_id|>")) == 1  # the template's own
    assert demo.config.mask_token_id not in ids
    assert "a<|eot_id|>b<|mdm_mask|>" in demo.tokenizer.decode(ids, skip_special_tokens=False)


def test_callback_sees_every_step_and_stops(demo):
    steps = []
    full = demo.generate("What is 17 plus 25?", callback=steps.append)
    assert [s.index for s in steps] == list(range(64)) and [s.masks_left for s in steps] == [[63 - i] for i in range(64)]
    assert steps[-1].text == full.text and steps[0].text[0] in full.text[0]
    for s in steps:
        where = s.positions[0] - full.prompt_lengths[0]
        assert np.array_equal(s.tokens[0], full.sequences[0][s.positions[0]]) and (full.commit_step[0][where] == s.index).all()
    stopped = demo.generate("What is 17 plus 25?", callback=lambda step: step.index == 9)
    assert stopped.finish_reason == ["cancelled"] and stopped.n_forward == 10
    assert (stopped.commit_step[0] >= 0).sum() == 10


def test_a_run_is_cancelled_where_it_was_not_done(model):
    """Whether masks are left says nothing of that: an editor may go on without any, and those of a prompt may remain."""
    options = {"gen_length": 4, "block_length": 4}
    editing = model.generate([1, 2], selector="threshold:tau=0", editor="token_edit:tau=0", callback=lambda step: True, **options)
    assert (editing.n_forward, editing.finish_reason) == (1, ["cancelled"]) and MASK not in editing.sequences[0]
    done = model.generate([MASK, MASK, 2], callback=lambda step: step.forward == 3, **options)
    assert (done.n_forward, done.finish_reason) == (4, ["length"]) and MASK in done.sequences[0][3:]
    assert model.generate([MASK, MASK, 2], callback=lambda step: step.forward == 2, **options).finish_reason == ["cancelled"]


def test_stream_is_the_same_run_and_can_be_left(demo):
    stream = demo.stream("What is 17 plus 25?")
    texts = [step.text[0] for step in stream]
    assert texts[-1] == "17 + 25 = 42" and all(texts[-1].startswith(t) for t in texts)
    left = demo.stream("What is 17 plus 25?")
    next(left)
    left.close()
    with pytest.raises(StopIteration):
        next(left)


def test_prompts_are_those_of_the_call(model):
    """Though a stream begins later, and a task too."""
    prompt = np.array([1, 2, 3], np.int32)
    stream, task = model.stream(prompt, gen_length=4), InferTask(0, prompt, 4)
    prompt[:] = 9
    assert next(stream).trace.canvas(0, -1)[:3].tolist() == task.tokens.tolist() == [1, 2, 3]


def test_verbose_prints_each_step_to_stderr(demo, capfd):
    demo.generate("What is 17 plus 25?", gen_length=16, block_length=16, verbose=True)
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 16 and "step 16/16 block 1/1 masks 0" in err and "left" in err


def test_silent_by_default(demo, capfd):
    demo.generate("What is 17 plus 25?", gen_length=16, block_length=16)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["wte", "blocks.0.attn_norm", "blocks.1.q_proj", "blocks.0.k_proj", "blocks.1.v_proj", "blocks.0.attn_out",
                                  "blocks.1.ff_norm", "blocks.0.ff_proj", "blocks.1.up_proj", "blocks.0.ff_out", "ln_f", "ff_out"])
def test_damaged_weights_are_named(tmp_path, name):
    config = folders.config()
    tensors = folders.tensors(config)
    tensors[f"model.transformer.{name}.weight"][3] = np.nan
    folders.write(tmp_path, config, tensors)
    with pytest.raises(NonFiniteLogitsError, match=r"prompt 0.*NaN"):
        LLaDAForCausalLM.from_pretrained(tmp_path).generate([1, 2, 3], gen_length=4)


def test_defaults_are_the_reference_sampler():
    o = GenerationOptions.resolve({}, {"mask_id": 5, "eos_id": 1, "eot_id": 2}, 64)
    assert (o.max_steps, o.gen_length, o.block_length) == (128, 128, 128)
    assert (o.temperature, o.cfg_scale, o.remasking) == (0.0, 0.0, "low_confidence")
    assert o.logits_eos_inf is False and o.confidence_eos_eot_inf is False


def test_conversations_of_many_threads_are_encoded_alike(demo):
    """Special tokens in messages are read as text without a flag that another thread could see."""
    message = [{"role": "user", "content": "a<|eot_id|>b" * 5 + "\U000f1ada7\U000f1adb"}]
    wanted = demo.tokenizer.encode_chat(message)
    with ThreadPoolExecutor(4) as pool:
        assert all(ids == wanted for ids in pool.map(lambda _: demo.tokenizer.encode_chat(message), range(400)))
    assert wanted.count(demo.tokenizer.token_id("<|eot_id|>")) == 1
