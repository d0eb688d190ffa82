"""Mistakes that other implementations of these methods have made, one test or more each; numbers are those of docs/decoding.md."""
from __future__ import annotations

import random
import re
from pathlib import Path

import demo_tasks
import dream
import folders
import numpy as np
import pytest
from backends import NotesCaches

from llada_native import LLaDAForCausalLM
from llada_native.selectors import NAMES as SELECTORS
from llada_native.selectors import Hierarchy, Threshold

ROOT = Path(__file__).parents[1]
MASK, OTHER, VOCABULARY = 58, 7, 64
CACHES = ("none", "prefix", "dual", "delayed", "dual:vicinity=(2,3)", "delayed:refresh_every=3,doubt=0.5")


def made(folder, change=None, **config):
    """A tiny model whose tensors `change` may touch."""
    config = folders.config(**config)
    tensors = folders.tensors(config)
    if change:
        change(tensors)
    return LLaDAForCausalLM(folders.write(folder, config, tensors))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return made(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """All logits are 0."""
    def change(tensors):
        tensors["model.transformer.ff_out.weight"][:] = 0
    return made(tmp_path_factory.mktemp("flat"), change)


@pytest.fixture(scope="module")
def masking(tmp_path_factory):
    """The mask token or its opposite wins everywhere."""
    def change(tensors):
        head = tensors["model.transformer.ff_out.weight"]
        head[MASK] *= 50
        head[OTHER] = -head[MASK]
    return made(tmp_path_factory.mktemp("masking"), change)


def test_1_whether_equality_counts(flat):
    """Two tokens are left, both with a probability of exactly 1/2."""
    options = {"gen_length": 8, "block_length": 8, "suppress_tokens": [t for t in range(VOCABULARY) if t not in (3, 4, MASK)]}
    passes = {repr(s): flat.generate([1, 2], selector=s, **options).n_forward
              for s in (Threshold(0.5), Threshold(0.5, strict=True), Hierarchy(0.5, 0.5), Threshold(0.9, slack=1e-5), Threshold(0.9))}
    assert list(passes.values()) == [1, 8, 8, 1, 8], passes


@pytest.mark.parametrize("selector", SELECTORS)
def test_2_a_predicted_mask_does_not_spin(masking, selector):
    out = masking.generate([1, 2, 3], gen_length=16, block_length=8, selector=selector)
    if selector == "quota":  # the reference spends steps on it
        assert out.n_forward == 16 and MASK in out.sequences[0]
        assert MASK not in masking.generate([1, 2, 3], gen_length=16, block_length=8, editor="remask").sequences[0]
    else:
        assert out.n_forward <= 16 and MASK not in out.sequences[0]
        edited = masking.generate([1, 2, 3], gen_length=16, block_length=8, selector=selector, editor="token_edit:tau=0")
        assert edited.n_forward <= 2 * (8 + 16) and MASK not in edited.sequences[0]


def test_3_ties(flat):
    """The lowest position first, with the lowest token; all 64 probabilities are equal but for the suppressed mask's."""
    for selector in ("quota", "threshold", "margin", "entropy_threshold:h=0"):
        out = flat.generate([1, 2], gen_length=8, block_length=8, selector=selector)
        assert out.commit_step[0].tolist() == list(range(8)) and set(out.sequences[0][2:]) == {0}


def test_4_a_speed_has_its_accuracy_beside_it():
    text = (ROOT / "docs/decoding.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    frontier = [t for t in tables if "tokens/s" in t.splitlines()[0]]
    assert frontier
    for line in frontier[0].splitlines()[2:]:
        cells = [c.strip() for c in line.strip("|").split("|")]
        assert re.fullmatch(r"0\.\d{4}", cells[1]) and re.fullmatch(r"[+-]\d\.\d\d ± \d\.\d\d", cells[2]), line


@pytest.mark.slow
def test_4_presets_keep_their_accuracy(demo):
    """At most one answer in fifty worse than the reference; tools/demo_frontier.py measures 2,000 prompts."""
    rng = random.Random(7)
    names = [t for t in demo_tasks.TASKS if t not in demo_tasks.ALWAYS_TRAINED]
    samples = [demo_tasks.sample(rng, want_held_out=True, task=t)[1:] for t in names for _ in range(12)]
    right = {}
    for preset in ("reference", "balanced", "fast"):
        out = demo.generate([prompt for prompt, _ in samples], gen_length=64, block_length=32, preset=preset)
        right[preset] = sum(text == wanted for text, (_, wanted) in zip(out.text, samples, strict=True))
    assert min(right.values()) >= right["reference"] - len(samples) // 50, right


def test_4_stale_keys_are_renewed_by_default():
    from llada_native.method import PRESETS
    assert all("cache" not in preset or (preset["cache"].refresh_every and preset["cache"].doubt) for preset in PRESETS.values())


def test_5_a_large_block_does_not_drown_in_end_tokens(demo):
    assert 8 <= demo._defaults["block_length"] <= 64
    for prompt in ("Write a short story about a fox.", "What is 17 plus 25?"):
        assert demo.generate(prompt, gen_length=64, block_length=64, confidence_eos_eot_inf=True).answer_lengths[0] > 3


def test_6_real_passes_and_real_tokens(demo):
    """max_steps bounds a threshold's passes, and what is counted is what was done."""
    for steps in (2, 4, 64):
        out = demo.generate("What is 17 plus 25?", gen_length=64, block_length=32, selector="threshold:tau=1", max_steps=steps)
        assert out.n_forward == len(out.trace) <= steps
        assert out.tokens_per_second == sum(out.answer_lengths) / out.timings["total"] and out.answer_lengths[0] < 20
        assert out.tokens_per_forward == out.answer_lengths[0] / out.n_forward


@pytest.mark.parametrize("prompt", range(1, 9))
def test_7_blocks_begin_behind_the_prompt(tiny, prompt):
    out = tiny.generate(np.arange(prompt), gen_length=24, block_length=8, selector="threshold:tau=0.03", cache="dual")
    blocks = (out.trace.writes["position"] - prompt) // 8
    assert (np.diff(blocks) >= 0).all() and set(blocks) == {0, 1, 2}
    rows = out.trace.passes["rows"]
    assert set(rows) <= {prompt + 24, 8} and (rows == prompt + 24).sum() == 3


@pytest.mark.parametrize("cache", CACHES[1:])
def test_8_guidance_has_a_cache_of_its_own(tiny, cache, monkeypatch):
    """With a scale of next to nothing the other half changes nothing, unless the two shared their keys."""
    notes = NotesCaches(tiny._backend)
    monkeypatch.setattr(tiny, "_backend", notes)
    options = {"gen_length": 16, "block_length": 8, "selector": "threshold:tau=0.05", "cache": cache}
    plain = tiny.generate([1, 2, 3], **options)
    guided = tiny.generate([1, 2, 3], cfg_scale=1e-30, **options)
    assert len(notes.made) == 3 and guided.sequences[0].tolist() == plain.sequences[0].tolist()


@pytest.mark.parametrize("cache", CACHES)
def test_9_the_row_before_predicts(tmp_path, cache):
    """A Dream whose layers add nothing sees in a row its own token only: the token that a prompt ends with is written on and on."""
    c = dream.config(hidden_size=VOCABULARY, num_attention_heads=8, tie_word_embeddings=True)
    tensors = {name: np.zeros_like(t) if "layers" in name and t.ndim == 2 else t for name, t in dream.tensors(c).items()}
    tensors |= {"model.embed_tokens.weight": np.eye(VOCABULARY, dtype=np.float32), "model.norm.weight": np.ones(VOCABULARY, np.float32)}
    model = LLaDAForCausalLM(folders.write(tmp_path, c, tensors))
    out = model.generate([3, OTHER], gen_length=16, block_length=8, cache=cache, selector="threshold:tau=0.9")
    assert out.sequences[0].tolist() == [3, *[OTHER] * 17] and out.commit_step[0].tolist() == list(range(16))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("guidance", [0, 0.8])
def test_10_padding_is_not_seen(tiny, cache, guidance):
    prompts = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    padded = np.array([[0] * (5 - len(p)) + p for p in prompts])
    kept = np.array([[0] * (5 - len(p)) + [1] * len(p) for p in prompts])
    options = {"gen_length": 16, "block_length": 8, "selector": "threshold:tau=0.05", "cache": cache, "cfg_scale": guidance}
    together = tiny.generate(padded, attention_mask=kept, **options)
    for r, prompt in enumerate(prompts):
        alone = tiny.generate(prompt, **options)
        assert together.sequences[r].tolist() == alone.sequences[0].tolist()
        assert together.confidence[r].tobytes() == alone.confidence[0].tobytes()


@pytest.mark.parametrize("options", [{"selector": "threshold"}, {"cache": "dual"}, {"canvas": "suffix_window"}, {"editor": "remask"},
                                     {"gen_length": "auto"}], ids=repr)
def test_11_masks_in_a_prompt(tiny, options):
    """As the reference has them, or not at all."""
    with pytest.raises(ValueError, match=r"prompts\[1\]: expected no mask token.*infill"):
        tiny.generate([[1, 2, 3], [1, MASK, 3]], **{"gen_length": 8, **options})
    assert tiny.generate([1, MASK, 3], gen_length=8, block_length=8).sequences[0][1] != MASK


def test_12_narrow_distributions_come_first(tiny):
    """By entropy, the first token written is that of the narrowest distribution; peers have had the sign the other way."""
    ids = np.array([1, 2, 3, *[MASK] * 8])
    logits = tiny.forward(ids)[3:].astype(float)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    for options in ({"remasking": "entropy"}, {"selector": "entropy_threshold:h=0"}, {"selector": "entropy_bound:gamma=0"}):
        out = tiny.generate([1, 2, 3], gen_length=8, block_length=8, **options)
        assert out.commit_step[0].argmin() == entropy.argmin()


def test_12_noise_is_drawn_for_every_row_and_for_none_at_temperature_0(flat):
    hot = flat.generate([1, 2], gen_length=32, block_length=32, max_steps=1, temperature=1.0, seed=3).sequences[0][2:]
    assert len(set(hot)) > 10
    cold = [flat.generate([1, 2], gen_length=8, block_length=8, seed=s).sequences[0].tolist() for s in (1, 2)]
    assert cold[0] == cold[1]


def test_12_only_open_rows_get_logits(tiny):
    """One block of three is open at a time, and what was written is not."""
    opened = tiny.generate([1, 2, 3], gen_length=24, block_length=8).trace.passes["open"]
    assert opened.tolist() == [8 - i % 8 for i in range(24)]


def test_12_confidence_is_a_probability(demo):
    confidence = demo.generate("What is 17 plus 25?", gen_length=64, block_length=32).confidence[0]
    assert ((confidence > 0) & (confidence <= 1)).all()


def test_12_the_factor_rule_at_its_edges(flat):
    """Where all tokens pass, all are taken; where only the last one fails, it waits."""
    options = {"gen_length": 2, "block_length": 2, "suppress_tokens": [t for t in range(VOCABULARY) if t not in (3, 4, MASK)]}
    assert flat.generate([1], selector="factor:f=1.51", **options).n_forward == 1  # 3 (1 - 1/2) < 1.51
    assert flat.generate([1], selector="factor:f=1.5", **options).n_forward == 2


def test_12_one_step_a_block_with_a_cache(tiny):
    """No pass beside the first one, and no quota is looked for behind the last."""
    out = tiny.generate([1, 2, 3], gen_length=16, block_length=8, max_steps=2, cache="dual")
    assert out.n_forward == 2 and MASK not in out.sequences[0]


def test_13_what_was_measured_with_distilled_weights_says_so():
    for text in ((ROOT / "docs/selectors.md").read_text("utf-8"), SELECTORS["entropy_threshold"].__doc__):
        assert "distilled" in text
