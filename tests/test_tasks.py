"""Tasks: their arguments, what they show of every round, how they end, and the flat arrays of several."""
from __future__ import annotations

import ctypes

import folders
import numpy as np
import oracle
import pytest
from rounds import generated, prompt_of, rounds, state, surest, take_round

import llada_native
from llada_native import InferTask, LLaDABatchedTask, LLaDAForCausalLM

MASK = 58


@pytest.fixture(scope="module")
def model(tiny):
    return LLaDAForCausalLM.from_pretrained(tiny[0], num_threads=1)


def test_arguments_of_a_task_by_position(model):
    prompt = prompt_of(1, 6)
    task = InferTask("a", prompt, 8, 0.8, 5, 0.9, [3, 4])
    assert (task.id, task.max_tokens, task.temperature, task.topk, task.topp, task.end_tokens) == ("a", 8, 0.8, 5, 0.9, [3, 4])
    assert np.array_equal(task.tokens, prompt) and task.gen_length == 8
    one = InferTask("a", prompt, 8, 0.8, 5, 0.9, [3, 4], seed=2)
    assert rounds(model, one) == generated(model, prompt, 8, temperature=0.8, top_k=5, top_p=0.9, seed=2)[0]


@pytest.mark.parametrize("off", [(None, None), (0, 1), (0, 1.0)])
def test_filters_that_are_off(model, off):
    task = InferTask(0, prompt_of(1, 6), 4, 0.8, *off, seed=2)
    assert rounds(model, task) == generated(model, prompt_of(1, 6), 4, temperature=0.8, seed=2)[0]


@pytest.mark.parametrize("options", [{"temperature": 0.9, "top_k": 2}, {"temperature": 0.9, "top_p": 0.2}], ids=str)
def test_filters_by_the_names_of_generate(model, options):
    """`**options` are as in `generate`, where top_k and top_p are names too."""
    prompt = prompt_of(1, 6)
    wanted = generated(model, prompt, 8, seed=2, **options)[0]
    assert wanted != generated(model, prompt, 8, seed=2, temperature=0.9)[0]
    assert rounds(model, InferTask(0, prompt, 8, seed=2, **options)) == wanted


@pytest.mark.parametrize("options", [{"temperature_": 0.9}, {"mask_token_id": 57}, {"topk_": 2, "temperature": 0.9}], ids=str)
def test_aliases_of_generate(model, options):
    prompt = prompt_of(1, 6)
    assert rounds(model, InferTask(0, prompt, 8, seed=2, **options)) == generated(model, prompt, 8, seed=2, **options)[0]


@pytest.mark.parametrize("tokens", [[3, 1, 4], (3, 1, 4), np.array([3, 1, 4], np.uint8), np.array([[3, 1, 4]])], ids=repr)
def test_a_prompt_of_any_kind(tokens):
    task = InferTask(None, tokens, 2)
    assert task.tokens.tolist() == [3, 1, 4] and task.tokens.dtype == np.int32


BAD = [
    ("tokens", {"tokens": "text"}, TypeError), ("tokens", {"tokens": []}, ValueError), ("tokens", {"tokens": [[1], [2]]}, ValueError),
    ("tokens", {"tokens": [1, -1]}, ValueError), ("tokens", {"tokens": [1.5]}, TypeError), ("max_tokens", {"max_tokens": 0}, ValueError),
    ("max_tokens", {"max_tokens": 1.5}, TypeError), ("max_tokens", {"max_tokens": True}, TypeError),
    ("temperature", {"temperature": -0.1}, ValueError), ("temperature", {"temperature": "hot"}, TypeError),
    ("top_?k", {"topk": -1}, ValueError), ("top_?k", {"topk": 1.5}, TypeError), ("top_?p", {"topp": 0}, ValueError),
    ("top_?p", {"topp": 1.5}, ValueError),
    ("end_tokens", {"end_tokens": [-1]}, ValueError), ("end_tokens", {"end_tokens": 3}, TypeError),
    ("end_tokens", {"end_tokens": "57"}, TypeError),
    ("gen_length", {"gen_length": 0}, ValueError), ("block_length", {"gen_length": 8, "block_length": 3}, ValueError),
    ("remasking", {"remasking": "sure"}, ValueError), ("cfg_scale", {"cfg_scale": -1}, ValueError), ("seed", {"seed": -1}, ValueError),
    ("seed", {"seed": 1.5}, TypeError), ("seed", {"seed": [1, 2]}, ValueError), ("mask_id", {"mask_id": -1}, ValueError),
    ("mask_id", {"mask_id": 1.0}, TypeError), ("repetition_penalty", {"repetition_penalty": 0}, ValueError),
    ("suppress_tokens", {"suppress_tokens": [-1]}, ValueError), ("unknown argument 'temprature'", {"temprature": 1}, TypeError),
    *((name, {name: value}, TypeError) for name in ("temperature", "cfg_scale")
      for value in ("", b"", [], {}, False, 0j, np.array([]))), ("remasking", {"remasking": ""}, ValueError),
    ("temperature", {"temperature": 0.0, "temperature_": 1.0}, TypeError),
    ("max_steps", {"max_steps": 8}, TypeError), ("steps", {"steps": 8}, TypeError),
]


@pytest.mark.parametrize(("name", "given", "kind"), BAD, ids=lambda part: str(part) if isinstance(part, dict) else "")
def test_bad_arguments_are_named(name, given, kind):
    with pytest.raises(kind, match=rf"^{name}(\[\d\])?: "):
        InferTask(0, **{"tokens": [1, 2], "max_tokens": 8, **given})


@pytest.mark.parametrize(("name", "given"), [("tokens", {"tokens": [1, 64]}), ("mask_id", {"mask_id": 64}),
                                             ("suppress_tokens", {"suppress_tokens": [64]}), ("eos_id", {"eos_id": 64})])
def test_ids_beyond_a_vocabulary_are_found_by_its_model(model, name, given):
    """The task has not joined: a model with a larger vocabulary may take it."""
    task = InferTask(0, **{"tokens": [1, 2], "max_tokens": 2, **given})
    before = state(task)
    with pytest.raises(ValueError, match=rf"{name}(\[\d\])?: expected .*63.* found 64"):
        model.batch_infer_one_round([task])
    assert state(task) == before
    larger = LLaDAForCausalLM.random(folders.config(embedding_size=96), "float32", num_threads=1)
    assert len(rounds(larger, task)) == 2


def test_state_before_the_first_round():
    task = InferTask("x", [3, 1, 4], 6, block_length=2)
    assert task.sequence.tolist() == [3, 1, 4] + [-1] * 6 and task.sequence.dtype == np.int32
    assert task.answer.tolist() == [-1] * 6 and (task.block, task.block_end) == (0, 9)
    assert (task.pending_position, task.pending_token, task.pending_confidence) == (None, None, None)
    assert task.revealed_positions == [] and task.finish_reason is None and not task.finished and task.kvcache() is None
    assert InferTask("x", [3, 1, 4], 2, mask_id=9).sequence.tolist() == [3, 1, 4, 9, 9]
    assert "'x'" in repr(task)


def test_state_of_every_round_against_the_oracle(tiny, model):
    """Float64 logits of the oracle say where the surest mask of the block is; the task says the same and shows what was committed."""
    _, config, tensors = tiny
    prompt = prompt_of(2, 5)
    task = InferTask("x", prompt, 8, block_length=4)
    sequence = np.concatenate([prompt, [MASK] * 8])
    order = []
    for i in range(8):
        end = 5 + 4 * (i // 4 + 1)
        position, token, confidence = surest(oracle.forward(tensors, config, sequence), np.flatnonzero(sequence[:end] == MASK))
        assert model.batch_infer_one_round([task]) == [token] == [task.pending_token]
        assert task.pending_position == position and task.pending_confidence == pytest.approx(confidence, abs=1e-6)
        assert np.array_equal(task.sequence, sequence) and (task.block, task.block_end) == (i // 4, end), "nothing is committed yet"
        assert not task.finished and task.mask_id == MASK
        task.next(token)
        sequence[position] = token
        order.append(position)
        assert np.array_equal(task.sequence, sequence) and np.array_equal(task.answer, sequence[5:]) and task.revealed_positions == order
        assert (task.pending_position, task.pending_token, task.pending_confidence) == (None, None, None)
    assert task.finished and task.finish_reason == "length"
    assert max(order[:4]) < 9 <= min(order[4:])


def test_what_a_task_shows_is_a_copy(model):
    task = InferTask(0, prompt_of(2, 5), 4)
    model.batch_infer_one_round([task])
    for shown in (task.sequence, task.answer):
        shown[:] = 1
    assert task.answer.tolist() == [MASK] * 4 and np.array_equal(task.sequence[:5], task.tokens)


def test_another_token_than_proposed_is_respected(tiny, model):
    """The next round computes with it: what the oracle finds after it, not after the proposed token."""
    _, config, tensors = tiny
    prompt = prompt_of(2, 5)
    task = InferTask("x", prompt, 4)
    [proposed] = model.batch_infer_one_round([task])
    where, given = task.pending_position, np.int64((proposed + 7) % 50)
    task.next(given)
    sequence = np.concatenate([prompt, [MASK] * 4])
    sequence[where] = given
    assert np.array_equal(task.sequence, sequence) and task.revealed_positions == [where]
    position, token, confidence = surest(oracle.forward(tensors, config, sequence), np.flatnonzero(sequence == MASK))
    assert model.batch_infer_one_round([task]) == [token] and task.pending_position == position
    assert task.pending_confidence == pytest.approx(confidence, abs=1e-6)
    sequence[where] = proposed
    assert surest(oracle.forward(tensors, config, sequence), np.flatnonzero(sequence == MASK))[2] != pytest.approx(confidence, abs=1e-6)


def test_a_round_repeated_without_temperature_finds_the_same(model):
    task = InferTask(0, prompt_of(2, 5), 4)
    found = []
    for _ in range(3):
        found.append((model.batch_infer_one_round([task]), task.pending_position, task.pending_confidence))
    assert found[0] == found[1] == found[2] and task.revealed_positions == []


@pytest.mark.parametrize(("token", "kind"), [(64, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("3", TypeError)])
def test_next_refuses_what_is_no_token(model, token, kind):
    task = InferTask(0, prompt_of(2, 5), 4)
    model.batch_infer_one_round([task])
    before = state(task)
    with pytest.raises(kind, match=r"^out_token: expected a token id"):
        task.next(token)
    assert state(task) == before


def test_next_needs_a_pending_position(model):
    task = InferTask("x", prompt_of(2, 5), 4)
    with pytest.raises(ValueError, match=r"task 'x' has no pending position"):
        task.next(3)
    take_round(model, task)
    before = state(task)
    with pytest.raises(ValueError, match=r"task 'x' has no pending position"):
        task.next(3)
    assert state(task) == before


@pytest.mark.parametrize("after", [0, 1, 2])
def test_next_none_cancels(model, after):
    """Before the first round, with a pending position, and between rounds."""
    task = InferTask("x", prompt_of(2, 5), 4)
    if after:
        model.batch_infer_one_round([task])
    if after == 2:
        task.next(task.pending_token)
    revealed = list(task.revealed_positions)
    task.next(None)
    assert task.finished and task.finish_reason == "cancelled" and task.pending_position is None and task.revealed_positions == revealed
    with pytest.raises(ValueError, match=r"finished \(cancelled\)"):
        model.batch_infer_one_round([task])
    for token in (3, None):
        with pytest.raises(ValueError, match=r"finished \(cancelled\)"):
            task.next(token)


def test_finish_reasons(model):
    prompt = prompt_of(2, 5)
    answer = generated(model, prompt, 4)[1].sequences[0][5:]
    inside, absent = int(answer[-1]), int(np.setdiff1d(np.arange(50), [*prompt, *answer])[0])
    only_in_prompt = int(np.setdiff1d(prompt, answer)[0])
    for end_tokens, reason in (([inside], "stop"), ([absent, inside], "stop"), ([absent], "length"), ([], "length"),
                               ([only_in_prompt], "length")):
        task = InferTask(0, prompt, 4, end_tokens=end_tokens)
        rounds(model, task)
        assert task.finish_reason == reason, end_tokens


def test_end_tokens_default_to_those_of_the_model(model):
    """A forced end token counts when the model, or the task's own options, call it one."""
    for options, forced, reason in (({}, 57, "stop"), ({}, 59, "stop"), ({}, 56, "length"), ({"eot_id": 56}, 56, "stop"),
                                    ({"eot_id": 56}, 59, "length"), ({"end_tokens": [3]}, 57, "length")):
        task = InferTask(0, prompt_of(2, 5), 3, suppress_tokens=[57, 59, 56, 3], **options)
        model.batch_infer_one_round([task])
        task.next(forced)
        rounds(model, task)
        assert task.finish_reason == reason, (options, forced)
        assert len(task.revealed_positions) == 3, "an end token ends no canvas that is not full"


def test_max_tokens_end_a_larger_canvas(model):
    prompt = prompt_of(2, 5)
    wanted, _ = generated(model, prompt, 8, block_length=4)
    task = InferTask(0, prompt, 3, gen_length=8, block_length=4, end_tokens=[])
    assert rounds(model, task) == wanted[:3] and task.finish_reason == "length"
    assert (task.answer == MASK).sum() == 5 and task.gen_length == 8
    with pytest.raises(ValueError, match=r"finished \(length\)"):
        model.batch_infer_one_round([task])
    longer = InferTask(0, prompt, 100, gen_length=8, block_length=4)
    assert rounds(model, longer) == wanted and len(longer.answer) == 8
    ended = InferTask(0, prompt, 3, gen_length=8, block_length=4, end_tokens=[wanted[1][1]])
    rounds(model, ended)
    assert ended.finish_reason == "stop"


# ---- flat arrays


def test_flat_arrays(model):
    first = InferTask("a", [3, 1, 4], 4, 0.5, 7, 0.9, block_length=2, mask_id=MASK)
    second = InferTask("b", [2, 7], 2, mask_id=MASK)
    cache = model.create_kv_cache()
    second.bind_kvcache(cache)
    take_round(model, second)
    second.bind_kvcache(cache, 2)
    batch = LLaDABatchedTask([first, second])
    assert batch.tasks == [first, second] and (batch.ntok, batch.nreq) == (9, 2)
    assert batch.tokens.tolist() == [3, 1, 4, MASK, MASK, MASK, MASK, *second.answer], "end to end, and what the cache holds is left out"
    assert batch.req_lens.tolist() == [7, 2] and batch.req_pos.tolist() == [0, 2]
    assert batch.kv_caches.tolist() == [0, cache.handle] and cache.handle != 0
    assert batch.temperatures.tolist() == [0.5, 0.0] and batch.topks.tolist() == [7, 0] and batch.topps.tolist() == [np.float32(0.9), 1.0]
    assert batch.block_ends.tolist() == [7, 4], "no round has set the first task's blocks"
    arrays = {"tokens": np.uint32, "req_lens": np.uint32, "req_pos": np.uint32, "kv_caches": np.uintp, "temperatures": np.float32,
              "topks": np.uint32, "topps": np.float32, "block_ends": np.uint32}
    for name, dtype in arrays.items():
        assert getattr(batch, name).dtype == dtype and getattr(batch, name).flags.c_contiguous, name
    order = "tokens", "ntok", "req_lens", "nreq", "req_pos", "kv_caches", "temperatures", "topks", "topps"
    assert all(value is getattr(batch, name) for name, value in zip(order, batch.input_args(), strict=True))
    model.batch_infer_one_round([first])
    assert LLaDABatchedTask([second, first]).block_ends.tolist() == [4, 5]


def test_flat_arrays_of_no_tasks():
    batch = LLaDABatchedTask([])
    assert (batch.ntok, batch.nreq, len(batch.tokens), len(batch.req_lens)) == (0, 0, 0, 0) and batch.tokens.dtype == np.uint32


def test_flat_arrays_need_tasks_and_masks(model):
    task = InferTask("new", [1, 2], 4)
    with pytest.raises(ValueError, match="'new': mask_id is not known"):
        LLaDABatchedTask([task])
    model.batch_infer_one_round([task])
    assert LLaDABatchedTask([task]).tokens.tolist() == [1, 2] + [MASK] * 4
    with pytest.raises(TypeError, match=r"^tasks\[1\]: expected an InferTask"):
        LLaDABatchedTask([task, "task"])


def test_flat_arrays_are_the_arguments_of_the_c_interface(tiny, model):
    """libllada, given `input_args` as they are, chooses what a round chooses."""
    lib = ctypes.CDLL(str(llada_native.get_library()))
    lib.lladaLoadModel.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(lib.lladaLoadModel(str(tiny[0]).encode(), 1))
    tasks = [InferTask(i, prompt_of(i, n), 8, 0.0, 5, 0.9, block_length=block) for i, (n, block) in enumerate(((9, 2), (3, 8), (14, 4)))]
    for _ in range(8):
        tokens = model.batch_infer_one_round(tasks)
        batch = LLaDABatchedTask(tasks)
        output, positions, confidence = np.empty(3, np.uint32), np.empty(3, np.uint32), np.empty(3)
        arguments = [*batch.input_args(), batch.block_ends, None, None, output, positions, confidence]
        assert lib.inferBatchLLaDA(handle, *(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments)) == 0
        assert output.tolist() == tokens and positions.tolist() == [t.pending_position for t in tasks]
        assert np.allclose(confidence, [t.pending_confidence for t in tasks], rtol=1e-12, atol=0)
        for task, token in zip(tasks, tokens, strict=True):
            task.next(token)
    lib.destroyLLaDAModel(handle)
