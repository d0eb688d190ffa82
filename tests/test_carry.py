"""Keys and values from turn to turn: the same answers bit for bit, and fewer rows."""
import folders
import llada2
import numpy as np
import pytest

from llada_native import Carry, EngineError, LLaDAForCausalLM
from llada_native.denoiser import Denoiser

B, EOS = llada2.BLOCK, 48


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = llada2.config(eos_token_id=EOS)
    tensors = llada2.tensors(config)
    tensors["model.norm.weight"] *= 6  # some predictions are sure, others are not
    return LLaDAForCausalLM(folders.write(tmp_path_factory.mktemp("llada2"), config, tensors))


def tokens(n, seed=0):
    return np.random.default_rng([n, seed]).integers(0, 48, n)


def turns(model, carry, lengths, **options):
    """A conversation of token ids: every prompt is the sequence before and some more."""
    ids = np.empty(0, np.int32)
    for i, n in enumerate(lengths):
        prompt = np.concatenate([ids, tokens(n, i)])
        alone = model.generate(prompt, gen_length=40, **options)
        carried = model.generate(prompt, gen_length=40, carry=carry, **options)
        yield alone, carried
        ids = alone.sequences[0]


@pytest.mark.parametrize("options", [{}, {"early_stop": False}, {"temperature": 0.8, "seed": 5}, {"preset": "quality"},
                                     {"cache_dtype": "float16"}, {"cache": "committed:prefill=32"}])
def test_the_same_answers_from_fewer_rows(model, options):
    carry = Carry()
    for turn, (alone, carried) in enumerate(turns(model, carry, (70, 31, 1, 64, 33), **options)):
        np.testing.assert_array_equal(alone.sequences[0], carried.sequences[0])
        np.testing.assert_array_equal(alone.confidence[0], carried.confidence[0])  # bit for bit
        assert carry.reused % B == 0 and (turn == 0) == (carry.reused == 0)
        assert alone.rows_computed - carried.rows_computed >= (carry.reused if turn else 0)
    assert carry.reused >= 160


def test_only_what_prompts_have_in_common_is_reused(model):
    carry = Carry()
    prompt = tokens(200)
    model.generate(prompt, gen_length=32, carry=carry)
    assert carry.held >= 192
    for changed, kept in ((150, 128), (31, 0), (0, 0)):
        other = prompt.copy()
        other[changed] = (other[changed] + 1) % 48
        wanted = model.generate(other, gen_length=32)
        found = model.generate(other, gen_length=32, carry=carry)
        np.testing.assert_array_equal(found.sequences[0], wanted.sequences[0])
        np.testing.assert_array_equal(found.confidence[0], wanted.confidence[0])
        assert carry.reused == kept
        model.generate(prompt, gen_length=32, carry=carry)
    shorter = model.generate(prompt[:100], gen_length=32, carry=carry)
    assert carry.reused == 96
    np.testing.assert_array_equal(shorter.sequences[0], model.generate(prompt[:100], gen_length=32).sequences[0])


def test_wrong_keys_would_be_seen(model):
    """The comparison is no empty one: with keys of other tokens the answers differ."""
    carry, other = Carry(), Carry()
    prompt = tokens(130)
    wanted = model.generate(prompt, gen_length=40)
    model.generate(tokens(130, 1), gen_length=40, carry=other)
    model.generate(prompt, gen_length=40, carry=carry)
    carry._caches = other._caches
    found = model.generate(prompt, gen_length=40, carry=carry)
    assert not np.array_equal(found.confidence[0], wanted.confidence[0])


@pytest.mark.parametrize("when", range(1, 6))
def test_after_an_interruption(model, when, monkeypatch):
    """Whenever a pass fails or the caller leaves, what is kept is right."""
    carry = Carry()
    prompt = tokens(170)
    first = model.generate(prompt, gen_length=40, carry=carry)
    following = np.concatenate([first.sequences[0], tokens(20, 3)])
    wanted = model.generate(following, gen_length=40)
    predict, passes = Denoiser.predict, []

    def fail(self, *arguments):
        passes.append(1)
        found = predict(self, *arguments)  # the keys are stored, and then it fails
        if len(passes) == when:
            raise EngineError("broken")
        return found

    monkeypatch.setattr(Denoiser, "predict", fail)
    with pytest.raises(EngineError):
        model.generate(following, gen_length=40, carry=carry)
    monkeypatch.undo()
    found = model.generate(following, gen_length=40, carry=carry)
    np.testing.assert_array_equal(found.confidence[0], wanted.confidence[0])
    assert carry.reused >= 160
    for step in model.stream(following, gen_length=40, carry=carry):
        if step.forward == when:
            break
    found = model.generate(following, gen_length=40, carry=carry)
    np.testing.assert_array_equal(found.confidence[0], wanted.confidence[0])


def test_after_an_interruption_that_edits(model, monkeypatch):
    """A pass stores the keys of edited tokens and fails; a prompt of the tokens before must not take them for its own."""
    prompt, predict, options = tokens(33), Denoiser.predict, {"preset": "quality", "editor": "token_edit:tau=0.0", "gen_length": 95}
    tried = 0
    for when in range(2, 40):
        seen = []

        def fail(self, canvases, passes, seen=seen, when=when):
            seen.append(canvases[0].ids.copy())
            found = predict(self, canvases, passes)
            if len(seen) == when:
                raise EngineError("broken")
            return found

        monkeypatch.setattr(Denoiser, "predict", fail)
        carry = Carry()
        try:
            model.generate(prompt, carry=carry, **options)
        except EngineError:
            monkeypatch.undo()
        else:
            monkeypatch.undo()
            break
        before, after = seen[-2:]
        whole = np.append(np.flatnonzero(before == llada2.MASK), len(before))[0] // B * B
        if np.array_equal(before[:whole], after[:whole]):
            continue
        tried += 1
        asked = np.append(before[:whole], tokens(5))
        found, wanted = (model.generate(asked, gen_length=32, carry=c) for c in (carry, None))
        np.testing.assert_array_equal(found.confidence[0], wanted.confidence[0])
    assert tried


def test_another_dtype_and_another_model_begin_anew(model, tmp_path):
    carry = Carry()
    prompt = tokens(100)
    model.generate(prompt, gen_length=32, carry=carry)
    model.generate(prompt, gen_length=32, carry=carry, cache_dtype="float16")
    assert carry.reused == 0
    for _ in range(2):
        model.generate(prompt, gen_length=32, carry=carry)
    assert carry.reused > 0
    config = llada2.config(eos_token_id=EOS)
    other = LLaDAForCausalLM(folders.write(tmp_path, config, llada2.tensors(config, 1)))
    found = other.generate(prompt, gen_length=32, carry=carry)
    assert carry.reused == 0
    np.testing.assert_array_equal(found.sequences[0], other.generate(prompt, gen_length=32).sequences[0])
    carry.close()
    assert carry.held == 0 and repr(carry) == "Carry(0 positions)"


def test_a_stream_takes_nothing_before_it_runs(model, tmp_path):
    carry, prompt = Carry(), tokens(100)
    model.generate(prompt, gen_length=32, carry=carry)
    held = carry.held
    config = llada2.config(eos_token_id=EOS)
    other = LLaDAForCausalLM(folders.write(tmp_path, config, llada2.tensors(config, 1)))
    waiting = [m.stream(prompt, gen_length=32, carry=carry) for m in (model, other)]
    assert carry.held == held >= 96
    for mine, m in zip(waiting, (model, other), strict=True):  # each is to find no keys of the other model
        *_, last = mine
        assert carry.reused == (96 if m is model else 0)
        np.testing.assert_array_equal(last.trace.canvas(0, last.forward), m.generate(prompt, gen_length=32).trace.canvas(0, last.forward))
    model.stream(prompt, gen_length=32, carry=carry).close()
    assert carry.held >= 96


def test_what_it_refuses(model, demo):
    with pytest.raises(ValueError, match="carry: expected a block-causal model; every row of this model sees the whole canvas"):
        demo.generate("hello", carry=Carry())
    with pytest.raises(TypeError, match="carry: expected a Carry, found 3"):
        model.generate(tokens(3), carry=3)
    with pytest.raises(ValueError, match="carry: expected one prompt, found 2"):
        model.generate([tokens(3), tokens(4)], carry=Carry())
    with pytest.raises(ValueError, match="carry: expected cache='committed' and no guidance"):
        model.generate(tokens(3), cache="none", carry=Carry())
    with pytest.raises(ValueError, match="carry: expected cache='committed' and no guidance"):
        model.generate(tokens(3), cfg_scale=1.0, carry=Carry())
