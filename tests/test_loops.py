"""Whole generations against the loops of loops.py: the same tokens, passes and rows, on random models and on the demo model."""
from __future__ import annotations

from types import SimpleNamespace

import folders
import loops
import numpy as np
import pytest
from methods import CASES, PARTS, lengths

from llada_native import InferTask, LLaDAForCausalLM
from llada_native.canvas import Canvas
from llada_native.denoiser import Look, Prediction
from llada_native.editors import Remask, TokenEdit, Turn, Wino
from llada_native.options import GenerationOptions
from llada_native.selectors import Credit, Klass, Threshold, WideDraft
from llada_native.windows import Blocks, Grow, LookAhead, SuffixWindow

TEXTS = ("What is 17 plus 25?", "Sort these numbers: 31, 7, 52, 12.")


@pytest.fixture(scope="module", params=[0, 1, 2])
def model(request, tmp_path_factory):
    config = folders.config(n_kv_heads=2)
    tensors = folders.tensors(config, request.param)
    tensors["model.transformer.ln_f.weight"] *= 4  # some predictions are sure, others are not
    return LLaDAForCausalLM(folders.write(tmp_path_factory.mktemp("loops"), config, tensors))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [3, 8])
def test_random_models(model, case, seed):
    options, loop, parameters = CASES[case]
    prompt = np.random.default_rng(seed).integers(0, 50, 11)
    out = model.generate(prompt, gen_length=24, block_length=8, **options)
    ids, passes, rows = loop(loops.looking(model), prompt, 24, 8, model.config.mask_token_id, *parameters)
    assert out.sequences[0].tolist() == ids.tolist()
    assert (out.n_forward, out.rows_computed) == (passes, rows)


DEMO_CASES = {
    "credit": ({"selector": "credit"}, loops.credit, (0.9, 0.8, 0.2, 0.7)),
    "klass": ({"selector": "klass"}, loops.klass, (0.9, 0.01, 2)),
    "suffix window": ({"selector": "threshold", "canvas": "suffix_window:length=20"}, loops.suffix_window, (0.9, 20, 4.0, 2.0, 0)),
    "look ahead": ({"selector": "threshold", "canvas": "look_ahead"}, loops.look_ahead, (0.9, 2, 0.1)),
    "token edit": ({"selector": "threshold:tau=0.3", "editor": "token_edit:tau=0.5"}, loops.token_edit, (0.3, 0.5, 16)),
    "remask": ({"editor": "remask:tokens=3"}, loops.remask, (48, 0.875, 3)),
    "wino": ({"editor": "wino"}, loops.wino, (0.6, 0.9)),
}


@pytest.mark.parametrize("case", DEMO_CASES)
def test_the_demo_model(demo, case):
    options, loop, parameters = DEMO_CASES[case]
    for text in TEXTS:
        out = demo.generate(text, gen_length=48, block_length=16, **options)
        prompt = out.sequences[0][:out.prompt_lengths[0]]
        ids, passes, rows = loop(loops.looking(demo), prompt, 48, 16, demo.config.mask_token_id, *parameters)
        assert out.sequences[0].tolist() == ids.tolist()
        assert (out.n_forward, out.rows_computed) == (passes, rows)


@pytest.mark.parametrize("canvas", [
    Grow(start=6, step=3, most=20, check=4, enough=0.2, sure=0.5, doubt=0.5), Grow(start=5, step=4, most=33, check=8, enough=0.5),
    Grow(start=9, step=8, most=9), Grow(start=14, step=3, most=40, check=2, enough=0.45, sure=0.6, doubt=0.9),
    Grow(start=7, step=5, most=30, check=6, enough=0.0, sure=1.0, doubt=0.9)], ids=repr)
def test_an_answer_that_grows(model, canvas):
    prompt = np.random.default_rng(5).integers(0, 50, 7)
    logits = loops.looking(model)(loops.starting(prompt, canvas.start, model.config.mask_token_id))[len(prompt):]
    end_token = int(np.bincount(logits.argmax(1)).argmax())  # so that the model predicts it at times
    out = model.generate(prompt, canvas=canvas, block_length=4, selector=Threshold(0.5), eos_id=end_token)
    ids, passes, rows = loops.grow(loops.looking(model), prompt, 4, model.config.mask_token_id, end_token, 0.5, canvas.start, canvas.step,
                                   canvas.most, canvas.check, canvas.enough, canvas.sure, canvas.doubt)
    assert out.sequences[0].tolist() == ids.tolist()
    assert (out.n_forward, out.rows_computed) == (passes, rows)
    assert len(ids) - len(prompt) <= canvas.most


def test_the_demo_model_finds_the_length(demo):
    for text, wanted in zip(TEXTS, ("17 + 25 = 42", "7, 12, 31, 52"), strict=True):
        out = demo.generate(text, gen_length="auto", selector="threshold")
        prompt = out.sequences[0][:out.prompt_lengths[0]]
        block = demo._defaults["block_length"]
        ids, passes, rows = loops.grow(loops.looking(demo), prompt, block, demo.config.mask_token_id, demo._defaults["eos_id"], 0.9,
                                       64, 8, 2048, 32, 0.5, 0.9, 0.1)
        assert out.text == [wanted] and out.sequences[0].tolist() == ids.tolist()
        assert (out.n_forward, out.rows_computed) == (passes, rows)


# ---- what holds for all of them

@pytest.mark.parametrize("options", PARTS, ids=repr)
@pytest.mark.parametrize("cache", ["prefix", "dual", "delayed"])
def test_always_refreshed_is_no_cache(model, options, cache):
    """The same bits: tokens, the passes that wrote them, and how sure they were."""
    if cache == "delayed" and isinstance(options.get("editor"), Wino):
        pytest.skip("refused")
    wanted = model.generate([3, 1, 4, 1, 5], block_length=8, **lengths(options))
    found = model.generate([3, 1, 4, 1, 5], block_length=8, cache=f"{cache}:refresh_every=1", **lengths(options))
    for name in ("sequences", "commit_step", "confidence"):
        assert getattr(found, name)[0].tobytes() == getattr(wanted, name)[0].tobytes(), name
    assert found.n_forward == wanted.n_forward and found.rows_computed == wanted.rows_computed


@pytest.mark.parametrize("options", PARTS, ids=repr)
@pytest.mark.parametrize("cache", ["none", "dual:vicinity=(2,2)"])
def test_a_batch_gives_what_each_gives_alone(model, options, cache):
    prompts = [[1, 2, 3], [4] * 9, [5, 6]]
    together = model.generate(prompts, block_length=8, cache=cache, **lengths(options))
    for r, prompt in enumerate(prompts):
        alone = model.generate(prompt, block_length=8, cache=cache, **lengths(options))
        assert together.sequences[r].tobytes() == alone.sequences[0].tobytes()
        assert together.confidence[r].tobytes() == alone.confidence[0].tobytes()


@pytest.mark.parametrize("options", [{"editor": TokenEdit(0.3), "selector": Threshold(0.3)}, {"editor": Remask(0.5, 2)},
                                     {"editor": Wino(0.2, 0.9)}], ids=repr)
def test_editors_leave_alone_what_was_given(model, options):
    fixed = {0: 17, 5: [18, 19], 23: 20}
    out = model.generate([1, 2, 3], gen_length=24, block_length=8, constraints=fixed, **options)
    answer = out.sequences[0][3:]
    assert answer[[0, 5, 6, 23]].tolist() == [17, 18, 19, 20]
    assert not set(out.trace.writes["position"] - 3) & {0, 5, 6, 23}


@pytest.mark.parametrize("options", [{"editor": TokenEdit(0.3), "selector": Threshold(0.3)}, {"editor": Remask(0.5, 2)},
                                     {"canvas": SuffixWindow(5), "selector": Threshold(0.3)}], ids=repr)
def test_guidance_and_temperature(model, options):
    """Guidance of next to nothing changes nothing; a seed repeats a draw."""
    plain = model.generate([1, 2, 3], gen_length=24, block_length=8, **options)
    guided = model.generate([1, 2, 3], gen_length=24, block_length=8, cfg_scale=1e-30, **options)
    assert guided.sequences[0].tolist() == plain.sequences[0].tolist() and guided.rows_computed == 2 * plain.rows_computed
    hot = [model.generate([1, 2, 3], gen_length=24, block_length=8, temperature=1.0, seed=4, **options).sequences[0].tolist() for _ in "ab"]
    assert hot[0] == hot[1] != plain.sequences[0].tolist()


@pytest.mark.parametrize("selector", [Credit(0.6, alpha=1.5), Klass(0.3, 0.1, 1)], ids=repr)
@pytest.mark.parametrize("canvas", [Blocks(), LookAhead(3, 0.2)], ids=repr)
def test_whole_rows_of_logits_are_those_of_their_request(model, selector, canvas):
    """In company, with guidance of next to nothing, and with several blocks: what is remembered is of the right rows."""
    options = {"gen_length": 24, "block_length": 8, "selector": selector, "canvas": canvas}
    alone = model.generate([1, 2, 3], **options)
    assert model.generate([1, 2, 3], cfg_scale=1e-30, **options).sequences[0].tolist() == alone.sequences[0].tolist()
    together = model.generate([[4] * 9, [1, 2, 3]], **options)
    assert together.sequences[1].tolist() == alone.sequences[0].tolist()
    assert together.confidence[1].tobytes() == alone.confidence[0].tobytes()


def test_klass_remembers_every_block_that_is_filled(model):
    """With a divergence that anything passes, tokens wait for `history` passes and no longer, in two blocks as in one."""
    options = {"gen_length": 32, "block_length": 8, "selector": Klass(0.0, 1e5, 2)}
    assert model.generate([1, 2, 3], canvas=LookAhead(4, 0), **options).n_forward < model.generate([1, 2, 3], **options).n_forward


def test_wino_in_a_window(model):
    prompt, canvas = np.random.default_rng(3).integers(0, 50, 11), SuffixWindow(9, 1.0, 1.5)
    kept = []
    for block in range(3):
        end = 11 + 8 * (block + 1)
        behind = np.arange(end, min(35, end + 9))
        draws = np.random.default_rng([0, block]).random(len(behind))
        kept.append(np.array([*range(end), *behind[draws < 1.5 * np.exp(-0.5 * ((behind - end) / 8) ** 2) / np.sqrt(2 * np.pi)]]))
    out = model.generate(prompt, gen_length=24, block_length=8, editor=Wino(0.2, 0.9), canvas=canvas)
    ids, passes, rows = loops.wino(loops.looking(model), prompt, 24, 8, model.config.mask_token_id, 0.2, 0.9, kept)
    assert len(kept[0]) < 35 and out.sequences[0].tolist() == ids.tolist() and (out.n_forward, out.rows_computed) == (passes, rows)


def test_edits_are_the_likeliest_tokens_whatever_is_drawn(model):
    """Above temperature 0 too, and never suppressed ones; looking draws no numbers."""
    suppressed = [t for t in range(64) if t % 3 == 0]
    options = {"gen_length": 24, "block_length": 8, "temperature": 1.0, "seed": 3, "suppress_tokens": suppressed}
    out = model.generate([1, 2, 3], selector=Threshold(0.3), editor=TokenEdit(0.2), **options)
    look, edits = loops.looking(model), [w for w in out.trace.writes if w["kind"] == 1]
    assert edits and not set(out.sequences[0][3:]) & set(suppressed)
    for edit in edits:
        logits = look(out.trace.canvas(0, int(edit["forward"]) - 1))[edit["position"]]
        logits[suppressed] = -np.inf
        assert logits.argmax() == edit["token"]
    first = model.generate([1, 2, 3], selector=Threshold(0.3), **options).trace.written(0, 0)
    assert np.array_equal(out.trace.written(0, 0)[1], first[1])


def test_an_editor_finishes_its_block_before_an_answer_ends(demo):
    for editor in ("token_edit", "wino"):
        out = demo.generate(TEXTS[0], gen_length=64, block_length=32, editor=editor, early_stop=True,
                            **({"selector": "threshold"} if editor == "token_edit" else {}))
        filled = out.trace.writes["position"][out.trace.writes["kind"] == 3] - out.prompt_lengths[0]
        assert filled.tolist() == list(range(32, 64)) and out.text == ["17 + 25 = 42"]


@pytest.mark.parametrize(("masks", "sure", "wanted"), [(64, 64, 20), (64, 9, 9), (64, 0, 1), (20, 20, 14), (6, 6, 5), (4, 4, 4)])
def test_how_much_wino_writes_at_once(masks, sure, wanted):
    rows = SimpleNamespace(probability=np.where(np.arange(masks) < sure, 0.9, 0.6))
    assert len(WideDraft(0.6).choose(rows, 1, None)) == wanted


def test_equality_is_not_enough_to_edit(model):
    canvas = Canvas(np.array([1], np.int32), GenerationOptions.resolve({"gen_length": 2, "mask_id": 58}, {}, 64), np.random.PCG64(0),
                    np.array([5, 6], np.int32))
    looked = Look(np.array([1, 2]), np.array([7, 8], np.int32), np.array([0.5, np.nextafter(0.5, 1)]))
    found = Prediction(np.empty(0, np.intp), np.empty(0, np.int32), np.empty(0), looked=looked)
    edits = TokenEdit(0.5).change(canvas, Turn(1, 3, 0, 2), found, 0, TokenEdit.Memory())
    assert edits.replaced.tolist() == [2] and edits.tokens.tolist() == [8]


def test_what_happens_to_a_canvas():
    """Tokens taken back are nobody's; masks that were put in are not given."""
    canvas = Canvas(np.array([1, 2], np.int32), GenerationOptions.resolve({"gen_length": 3, "mask_id": 58}, {}, 64), np.random.PCG64(0))
    canvas.commit(np.array([2, 4]), np.array([7, 8], np.int32), np.array([0.5, 0.6]), 3)
    canvas.grow(4, 2)
    assert canvas.ids.tolist() == [1, 2, 7, 58, 58, 58, 8] and canvas.commit_step.tolist() == [3, -1, -1, -1, 3]
    assert canvas.unconditional().tolist() == [58, 58, 7, 58, 58, 58, 8] and canvas.confidence[4] == 0.6
    canvas.revoke(np.array([6]))
    assert canvas.ids[6] == 58 and canvas.commit_step[4] == -1 and np.isnan(canvas.confidence[4])


@pytest.mark.parametrize(("options", "message"), [
    ({"selector": "credit", "temperature": 0.5}, "selector: Credit.* expected temperature 0"),
    ({"selector": "klass", "confidence_eos_eot_inf": True}, "selector: Klass.* confidence_eos_eot_inf=False"),
    ({"selector": "threshold", "editor": "remask"}, "editor: Remask.* goes with selector='quota', found Threshold"),
    ({"selector": "threshold", "editor": "wino"}, "editor: Wino.* by a rule of its own, found selector=Threshold"),
    ({"editor": "wino", "cfg_scale": 1.0}, "editor: Wino.* knows no guidance; expected cfg_scale 0, found 1"),
    ({"editor": "wino", "cache": "delayed"}, "editor: Wino.* another cache than Delayed"),
    ({"canvas": "look_ahead"}, "canvas: LookAhead.* expected another part than selector='quota'"),
    ({"canvas": "look_ahead", "selector": "factor", "editor": "token_edit"}, "canvas: LookAhead.* another part than editor=TokenEdit"),
    ({"gen_length": "auto", "max_steps": 8}, "max_steps: canvas=Grow.* expected no max_steps, found 8"),
    ({"canvas": "grow", "gen_length": 8}, "gen_length: canvas=Grow.* expected no gen_length, found 8"),
    ({"canvas": "suffix_window", "gen_length": "auto"}, "gen_length: 'auto' is canvas='grow', found canvas=SuffixWindow"),
    ({"gen_length": "auto", "editor": "remask"}, "editor: Remask.* with canvas=Grow.* blocks change"),
    ({"gen_length": "auto", "editor": "token_edit"}, "editor: TokenEdit.* with canvas=Grow.* blocks change"),
    ({"gen_length": "auto", "logits_eos_inf": True}, "canvas: Grow.* expected no logits_eos_inf"),
    ({"gen_length": "auto", "confidence_eos_eot_inf": True}, "canvas: Grow.* no confidence_eos_eot_inf"),
    ({"gen_length": "auto", "suppress_tokens": [57]}, "canvas: Grow.* no suppress_tokens with it"),
    ({"editor": "wino", "repetition_penalty": 1.5}, "editor: Wino.* repetition_penalty .* expected 1, found 1.5"),
    ({"gen_length": "auto", "constraints": {0: 1}}, "constraints: with canvas=Grow.* expected none"),
    ({"gen_length": "long"}, "gen_length: expected a whole number or 'auto', found 'long'"),
    ({"canvas": "window"}, "canvas: expected 'suffix_window' or another of"),
    ({"editor": "wine"}, "editor: expected 'wino' or another of"),
    ({"cache_dtype": "int8"}, "cache_dtype: expected one of 'float32', 'float16', found 'int8'"),
    ({"editor": "remask:share=2"}, "remask: share: expected a number from 0 to 1"),
    ({"canvas": "grow:start=9,most=3"}, "grow: most: expected 9 to"),
])
def test_refusals(model, options, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        model.generate([1, 2, 3], **options)


@pytest.mark.parametrize("options", [{"canvas": "grow"}, {"canvas": Grow()}, {"gen_length": "auto"}], ids=repr)
def test_a_text_to_fill_does_not_grow(model, options):
    with pytest.raises((TypeError, ValueError), match="canvas"):
        model.infill([1, 58, 3], **options)


@pytest.mark.parametrize("options", [{"canvas": "look_ahead"}, {"editor": "token_edit"}, {"editor": "wino"}, {"canvas": "grow"}], ids=repr)
def test_tasks_have_neither(options):
    with pytest.raises((TypeError, ValueError), match=r"canvas|editor|selector"):
        InferTask(0, [1, 2], 8, **options)


def test_an_answer_stays_within_the_model(demo):
    """max_tokens bounds what grows."""
    with LLaDAForCausalLM.from_pretrained(max_tokens=120) as short:
        out = short.generate(TEXTS[1], canvas="grow:enough=1", selector="threshold")
        assert len(out.sequences[0]) == 120
        long = TEXTS[1] * 3
        ids = demo.generate(long, gen_length=8, max_steps=1, block_length=8).sequences[0][:-8]
        assert 60 < len(ids) < 120  # less room than the start of 64
        assert len(short.generate(long, gen_length="auto", selector="threshold").sequences[0]) == 120
        with pytest.raises(ValueError, match="model's max_tokens"):
            short.generate(TEXTS[1] * 6, gen_length="auto")


def test_a_cache_in_half_the_memory(model):
    """float16 rounds keys: the same tokens here, and caches of that kind."""
    out = model.generate([1, 2, 3], gen_length=16, block_length=8, cache="dual", cache_dtype="float16", selector=Threshold(0.5))
    assert out.sequences[0].tolist() == model.generate([1, 2, 3], gen_length=16, block_length=8, cache="dual",
                                                       selector=Threshold(0.5)).sequences[0].tolist()
    assert out.confidence[0].tobytes() != model.generate([1, 2, 3], gen_length=16, block_length=8, cache="dual",
                                                         selector=Threshold(0.5)).confidence[0].tobytes()
    assert model.create_kv_cache("float16").dtype == "float16" and model.create_kv_cache().dtype == "float32"
