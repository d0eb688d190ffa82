"""Anything at all as an argument of tasks, rounds, caches, infills and scores: refused by name, or taken; never half, never leaking."""
from __future__ import annotations

import gc
import itertools
import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory import resident

from llada_native import InferTask, KVCache, LLaDABatchedTask, LladaError, LLaDAForCausalLM, NonFiniteLogitsError

CONFIG = folders.config(n_kv_heads=2, max_sequence_length=32)
MASK = 58
BACKENDS = ("native", "reference", "placeholder")
HUGE = 10**400
EXPLAINED = ("expected", "text needs a tokenizer", "overlaps another constraint", "is also tasks[", "is finished", "was dropped",
             "belongs to another model", "the text to fill is the canvas", "no such file")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.write(tmp_path_factory.mktemp("model"), CONFIG, folders.tensors(CONFIG))


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, LLaDAForCausalLM]:
    return {backend: LLaDAForCausalLM(folder, num_threads=1, backend=backend) for backend in BACKENDS}


@pytest.fixture(scope="module")
def model(models: dict[str, LLaDAForCausalLM]) -> LLaDAForCausalLM:
    return models["native"]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> LLaDAForCausalLM:
    """A model that fails late: its transformer works, one row of its head is NaN."""
    tensors = folders.tensors(CONFIG)
    tensors["model.transformer.ff_out.weight"][3] = np.nan
    return LLaDAForCausalLM(folders.write(tmp_path_factory.mktemp("damaged"), CONFIG, tensors), num_threads=1)


def label(part: object) -> str:
    """The id of a test's parameter, without addresses."""
    return re.sub(r" at 0x\w+", "", repr(part))[:50]


def taken_or_refused(call: Callable[[], Any], *names: str) -> Any:
    """What a call gives; or None, when it was refused by TypeError, ValueError or an error of the package that begins with a name."""
    try:
        return call()
    except (TypeError, ValueError, LladaError) as e:
        message = str(e)
        assert type(e) in (TypeError, ValueError) or isinstance(e, LladaError)
        assert re.match(rf"({'|'.join(names)})(?!\w)", message), f"{type(e).__name__}: {message}"
        assert any(part in message for part in EXPLAINED), f"{type(e).__name__}: {message}"
        return None


SCALARS = st.one_of(st.none(), st.booleans(), st.text(max_size=8), st.floats(), st.integers(-3, 40), st.integers(-(2**70), -1),
                    st.integers(2**25, 2**70),
                    st.sampled_from([HUGE, -HUGE, 1j, b"4", Decimal(4), np.float32(0.5), np.int64(3), "reference", "entropy", object()]))
ARRAYS = st.sampled_from([np.array(5), np.zeros(0, int), np.zeros((2, 0), int), np.zeros((2, 2), int), np.array([1.5]),
                          np.array([MASK, 99]), np.array(["a"]), np.array([None]), np.array([1, 2], np.uint64),
                          np.array([2**63], np.uint64), np.array(3.0)])
VALUES = st.recursive(SCALARS | ARRAYS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.text(max_size=3) | st.integers(-1, 9), inner, max_size=2),
    st.sets(st.integers(-2, 70), max_size=3)), max_leaves=6)
IDS = st.lists(st.integers(-2, 66), max_size=5)

anything = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def extremes(test: Any) -> Any:
    """Values that every argument should meet, whatever hypothesis draws."""
    for value in (None, float("nan"), float("inf"), 5e-324, HUGE, [], "", {}, -1, True, np.array(5), [[1, 2], [3]]):
        test = example(value=value)(test)
    return test


# ---- any value for one argument

GENERATE = ("top_k", "top_p", "topk_", "topp_", "repetition_penalty", "suppress_tokens", "constraints", "verbose", "fallback", "callback",
            "temperature_", "steps", "max_new_tokens", "chat", "seed")
NAMES = {"topk_": "top_k", "topp_": "top_p", "temperature_": "temperature", "steps": "max_steps", "max_new_tokens": "gen_length",
         "topk": "top_k", "topp": "top_p"}


@pytest.mark.parametrize("name", GENERATE)
@anything
@given(value=VALUES | IDS)
@extremes
def test_generate(model: LLaDAForCausalLM, name: str, value: Any) -> None:
    lengths = {} if name == "max_new_tokens" else {"gen_length": 4}
    other = ("prompts",) if name == "max_new_tokens" else ()  # a canvas that is too long is too long for its prompt
    out = taken_or_refused(lambda: model.generate([1, 2, 3], **({"seed": 0, "temperature": 0.5} if name != "temperature_" else {"seed": 0})
                                                  | lengths | {name: value}), NAMES.get(name, name), name, *other)
    if out is not None:
        assert out.sequences[0].min() >= 0 and out.sequences[0].max() < 64


@pytest.mark.parametrize("name", ["top_k", "suppress_tokens", "constraints", "seed", "prompts"])
@anything
@given(value=VALUES)
@extremes
def test_stream(model: LLaDAForCausalLM, name: str, value: Any) -> None:
    """Refused at the call, not at the first step."""
    steps = taken_or_refused(lambda: model.stream(**{"prompts": [1, 2, 3], "gen_length": 4, name: value}), name)
    assert steps is None or len(list(steps)) == 4 or name == "constraints"


POSITIONS = st.one_of(st.integers(-2, 9), st.sampled_from([True, None, 1.0, "0", HUGE, np.int64(2), np.float64(1), (1,)]))


@anything
@given(value=st.dictionaries(POSITIONS, VALUES | IDS | st.integers(-2, 66), max_size=3)
       | st.lists(st.dictionaries(POSITIONS, IDS), max_size=2))
def test_constraints(model: LLaDAForCausalLM, value: Any) -> None:
    """What is taken is in the answer."""
    out = taken_or_refused(lambda: model.generate([1, 2, 3], gen_length=6, constraints=value), "constraints")
    if out is not None:
        for position, words in (value[0] if isinstance(value, list) else value).items():
            ids = np.atleast_1d(words)
            assert np.array_equal(out.sequences[0][3 + position:][:len(ids)], ids)


@pytest.mark.parametrize("name", ["texts", "prompt", "max_steps", "chat", "seed", "verbose", "callback", "fallback", "top_k", "mask_id",
                                  "suppress_tokens", "cfg_scale", "remasking"])
@anything
@given(value=VALUES | IDS)
@extremes
def test_infill(model: LLaDAForCausalLM, name: str, value: Any) -> None:
    out = taken_or_refused(lambda: model.infill(**{"texts": [3, MASK, 9, MASK], "seed": 0, name: value}),
                           *({"prompt": ("prompts?",), "mask_id": ("mask_id", "texts")}.get(name, (name,))))
    if out is not None and name not in ("texts", "mask_id"):
        assert out.sequences[0][-4] == 3 and out.sequences[0][-2] == 9


@anything
@given(texts=st.lists(st.lists(st.text(max_size=3) | st.integers(-1, 4) | st.sampled_from([None, 1.5, True, [1], HUGE]), max_size=4)
                      | st.sampled_from([5, None, "a", [], (), np.array([1]), {}]), max_size=3))
@example(texts=[["a", 1], 5])
@example(texts=[["a", 1], []])
@example(texts=[["a", 1], [2000]])
def test_infill_of_parts(demo: LLaDAForCausalLM, texts: Any) -> None:
    out = taken_or_refused(lambda: demo.infill(texts, max_steps=1), "texts")
    assert out is None or all(isinstance(text, str) for text in out.text)


@pytest.mark.parametrize("name", ["prompts", "answers", "mc_num", "batch_size", "cfg_scale", "chat", "seed", "mask_id"])
@anything
@given(value=VALUES | IDS)
@extremes
def test_score(model: LLaDAForCausalLM, name: str, value: Any) -> None:
    scores = taken_or_refused(lambda: model.score(**{"prompts": [1, 2, 3], "answers": [4, 5], "mc_num": 2, "seed": 0, name: value}),
                              name, *{"batch_size": ("mc_num",), "prompts": ("answers",)}.get(name, ()))
    assert scores is None or np.isfinite(scores).all()


TASK = ("tokens", "max_tokens", "temperature", "topk", "topp", "end_tokens", "gen_length", "block_length", "remasking", "cfg_scale", "seed",
        "mask_id", "suppress_tokens", "repetition_penalty", "logits_eos_inf", "eos_id")


@pytest.mark.parametrize("name", TASK)
@anything
@given(value=VALUES | IDS)
@extremes
def test_task(model: LLaDAForCausalLM, name: str, value: Any) -> None:
    """Refused by the constructor, or, as far as the model decides, by its first round; else the round gives a token."""
    given = {"id": "x", "tokens": [1, 2, 3], **({} if name == "gen_length" else {"max_tokens": 4}), name: value}
    task = taken_or_refused(lambda: InferTask(**given), NAMES.get(name, name), name)
    if task is not None:
        token = taken_or_refused(lambda: model.batch_infer_one_round([task]), NAMES.get(name, name), name, "task 'x'", "prompts", "tokens")
        assert token is None or 0 <= token[0] < 64


@anything
@given(value=VALUES)
@extremes
def test_rounds(model: LLaDAForCausalLM, value: Any) -> None:
    """No list of tasks, or something else in it; a good task beside it is as it was."""
    assert taken_or_refused(lambda: model.batch_infer_one_round(value), "tasks") in (None, [])
    task = InferTask("good", [1, 2, 3], max_tokens=4)
    with pytest.raises(TypeError, match=r"^tasks\[1\]: expected an InferTask, found "):
        model.batch_infer_one_round([task, value])
    assert task.pending_position is None and task.mask_id is None


@anything
@given(value=VALUES)
@extremes
def test_batched_task(value: Any) -> None:
    task = InferTask("good", [1, 2, 3], max_tokens=4, mask_id=MASK)
    with pytest.raises(TypeError, match=r"^tasks.*: expected .*, found "):
        LLaDABatchedTask([task, value])
    flat = taken_or_refused(lambda: LLaDABatchedTask(value), "tasks")
    assert flat is None or flat.ntok == 0


@anything
@given(value=VALUES)
@extremes
def test_committing(model: LLaDAForCausalLM, value: Any) -> None:
    """A refused token leaves the position pending."""
    task = InferTask("x", [1, 2, 3], max_tokens=4)
    model.batch_infer_one_round([task])
    position = task.pending_position
    taken_or_refused(lambda: task.next(value), "out_token")
    assert task.finished or task.pending_position == position or task.revealed_positions == [position]
    assert task.finish_reason == ("cancelled" if value is None else None)


@pytest.mark.parametrize("backend", BACKENDS)
@anything
@given(value=VALUES)
@extremes
def test_caches(models: dict[str, LLaDAForCausalLM], backend: str, value: Any) -> None:
    model = models[backend]
    task, cache = InferTask("x", [1, 2, 3], max_tokens=4, mask_id=MASK), model.create_kv_cache()
    task.bind_kvcache(cache)
    model.batch_infer_one_round([task])
    taken_or_refused(lambda: task.bind_kvcache(value), "kv_cache")
    taken_or_refused(lambda: task.bind_kvcache(cache, value), "pos")
    taken_or_refused(lambda: model.drop_kv_cache(value), "kv_cache")
    matched = taken_or_refused(lambda: cache.num_matched(value), "tokens")
    assert matched is None or 0 <= matched <= 7
    taken_or_refused(lambda: cache.truncate(value), "length", "expected 0 to")
    assert cache.length == (int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value <= 7 else 7)


@anything
@given(value=VALUES)
@extremes
def test_cache_of_no_model(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^model: expected .*, found "):
        KVCache(value)


@pytest.mark.parametrize("name", ["device", "ndev", "max_tokens", "fallback", "dtype", "backend", "num_threads", "isa", "model_dir_path"])
@settings(anything, max_examples=25)
@given(value=VALUES)
@extremes
def test_constructor(folder: Path, name: str, value: Any) -> None:
    """A path that is no checkpoint is named by itself."""
    names = (name,) if name != "model_dir_path" or not isinstance(value, str) else (".*",)
    model = taken_or_refused(lambda: LLaDAForCausalLM(**{"model_dir_path": folder, "num_threads": 1, name: value}), *names)
    if model is not None:
        model.close()


# ---- cases

@pytest.mark.parametrize(("arguments", "error", "message"), [
    *(({"device": n}, ValueError, f"device: expected DEVICE_TYPE_CPU, .*, found DEVICE_TYPE_{name}$")
      for name, n in (("NVIDIA", 1), ("KUNLUN", 7))),
    *(({"device": value}, ValueError, f"device: expected a DeviceType.*, found {value}$") for value in (-1, 9, 10**30)),
    *(({"device": value}, TypeError, "device: expected a DeviceType.*, found ") for value in ("cuda", None, 0.0, False, [0])),
    ({"ndev": 0}, ValueError, r"ndev: expected 1, found 0"),
    ({"ndev": 2}, ValueError, "ndev: expected 1, found 2"),
    ({"ndev": 1.0}, TypeError, "ndev: expected a whole number, found 1.0$"),
    ({"max_tokens": 0}, ValueError, "max_tokens: expected 1 to 32, found 0$"),
    ({"max_tokens": 33}, ValueError, "max_tokens: expected 1 to 32, found 33$"),
    ({"max_tokens": "8"}, TypeError, "max_tokens: expected a whole number, found '8'$"),
    *(({"fallback": value}, ValueError, "fallback: expected one of 'reference', 'placeholder', found ")
      for value in ("native", "", "numpy")),
    *(({"fallback": value}, TypeError, "fallback: expected one of 'reference', 'placeholder', found ")
      for value in (True, 5, ["reference"])),
], ids=label)
def test_devices_and_fallbacks(folder: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        LLaDAForCausalLM(folder, **arguments)


@pytest.mark.parametrize("name", ["gen_length", "top_k", "seed", "temperature", "mask_id"])
def test_numbers_too_long_to_print(model: LLaDAForCausalLM, name: str) -> None:
    """Python refuses to print more than 4,300 digits, which must not take the place of the message."""
    with pytest.raises(ValueError, match=f"^{name}: expected .*, found "):
        model.generate([1, 2, 3], **{"gen_length": 4, name: 10**5000})


@pytest.mark.parametrize(("call", "name"), [*itertools.product(["infill", "task"], ["attention_mask", "constraints", "prompts"]),
                                            ("stream", "callback"), ("stream", "verbose"), ("task", "chat")])
def test_arguments_of_other_calls_are_not_recommended(model: LLaDAForCausalLM, call: str, name: str) -> None:
    """Not "unknown argument 'callback': did you mean 'callback'?"."""
    calls = {"stream": lambda **k: model.stream([1, 2, 3], gen_length=4, **k), "infill": lambda **k: model.infill([3, MASK], **k),
             "task": lambda **k: InferTask("x", [1], max_tokens=4, **k)}
    with pytest.raises(TypeError, match=f"^unknown argument '{name}'|^{name}: ") as info:
        calls[call](**{name: [1]})
    assert f"did you mean '{name}'" not in str(info.value)


@pytest.mark.parametrize("call", ["generate", "infill", "score", "task"])
def test_a_sequence_that_is_too_long_names_the_argument_of_the_call(model: LLaDAForCausalLM, call: str) -> None:
    """infill and score have no gen_length, a task has no prompts."""
    calls: dict[str, tuple[Callable[[], Any], str]] = {
        "generate": (lambda: model.generate([1] * 30, gen_length=4), "prompts"),
        "infill": (lambda: model.infill([MASK] * 33), r"texts\[0\]"),
        "score": (lambda: model.score([1] * 30, [2] * 4), r"(prompts|answers)(\[0\])?"),
        "task": (lambda: model.batch_infer_one_round([InferTask("long", [1] * 30, max_tokens=4)]), "(task 'long': )?(tokens|gen_length)"),
    }
    run, name = calls[call]
    with pytest.raises(ValueError, match=rf"^{name}: expected .*max_tokens \(32\).*found ") as info:
        run()
    assert call in ("generate", "task") or "gen_length" not in str(info.value)


# ---- nothing changes half


def bad_tasks(model: LLaDAForCausalLM, other: LLaDAForCausalLM) -> dict[str, Callable[[], Any]]:
    """Tasks that a round refuses for reasons that only the model knows."""
    def bound(cache: KVCache) -> InferTask:
        task = InferTask("bad", [1, 2], max_tokens=4)
        task.bind_kvcache(cache)
        return task

    def dropped() -> InferTask:
        task = bound(cache := model.create_kv_cache())
        cache.drop()
        return task

    return {
        "too long": lambda: InferTask("bad", [1] * 40, max_tokens=4),
        "outside the vocabulary": lambda: InferTask("bad", [1, 64], max_tokens=4),
        "mask outside the vocabulary": lambda: InferTask("bad", [1, 2], max_tokens=4, mask_id=64),
        "suppression outside the vocabulary": lambda: InferTask("bad", [1, 2], max_tokens=4, suppress_tokens=[64]),
        "suppression of everything": lambda: InferTask("bad", [1, 2], max_tokens=4, suppress_tokens=range(64)),
        "cache of another model": lambda: bound(other.create_kv_cache()),
        "dropped cache": dropped,
        "no task": lambda: 5,
    }


@pytest.mark.parametrize("kind", list(bad_tasks(None, None)))  # type: ignore[arg-type]
def test_a_refused_round_changes_no_task(models: dict[str, LLaDAForCausalLM], kind: str) -> None:
    """A good task beside a bad one stays free to go to another model; one that had begun goes on as if nothing had been."""
    model, other = models["native"], models["reference"]
    bad = bad_tasks(model, other)[kind]()
    fresh = InferTask("fresh", [1, 2, 3], max_tokens=4, seed=0)
    begun, undisturbed = (InferTask("begun", [4, 5], max_tokens=4, temperature=1.0, seed=1) for _ in range(2))
    for task in (begun, undisturbed):
        task.next(model.batch_infer_one_round([task])[0])
    for order in itertools.permutations([fresh, begun, bad]):
        with pytest.raises((TypeError, ValueError)):
            model.batch_infer_one_round(list(order))
    while not begun.finished:
        assert model.batch_infer_one_round([begun]) == model.batch_infer_one_round([undisturbed])
        assert begun.pending_position == undisturbed.pending_position
        for task in (begun, undisturbed):
            task.next(task.pending_token)
    assert other.batch_infer_one_round([fresh])


def test_a_round_that_fails_late_leaves_a_usable_cache(damaged: LLaDAForCausalLM, model: LLaDAForCausalLM) -> None:
    """The forward pass has filled the cache when the logits turn out to be NaN: the cache must know whose keys it holds, or hold none."""
    task, cache = InferTask("x", [1, 2, 3], max_tokens=4), damaged.create_kv_cache()
    task.bind_kvcache(cache)
    for _ in range(2):
        with pytest.raises(NonFiniteLogitsError, match="NaN"):
            damaged.batch_infer_one_round([task])
    assert len(cache.tokens) == cache.length
    assert cache.num_matched(task.sequence) in (0, 7)
    assert task.pending_position is None
    other = InferTask("y", [9, 8, 3, 1], max_tokens=3)  # as long as the first, with other tokens
    task.release_kvcache()
    other.bind_kvcache(cache)
    with pytest.raises(NonFiniteLogitsError):
        damaged.batch_infer_one_round([other])
    assert cache.num_matched(task.sequence) == 0, "the keys are those of the second task"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dropped_cache_says_so(models: dict[str, LLaDAForCausalLM], backend: str) -> None:
    """The same from every backend, and dropping twice is once."""
    cache = models[backend].create_kv_cache()
    task = InferTask("x", [1, 2], max_tokens=4)
    task.bind_kvcache(cache)
    models[backend].batch_infer_one_round([task])
    cache.drop()
    models[backend].drop_kv_cache(cache)
    assert cache.closed and repr(cache) == "KVCache(dropped)"
    for use in (lambda: cache.length, lambda: cache.truncate(0), lambda: cache.num_matched([1]), lambda: cache.nbytes, lambda: cache.tokens,
                lambda: task.bind_kvcache(cache), lambda: models[backend].batch_infer_one_round([task])):
        with pytest.raises(ValueError, match="was dropped"):
            use()
    assert task.release_kvcache() is cache and models[backend].batch_infer_one_round([task])


# ---- leaks


def late_failures(model: LLaDAForCausalLM, damaged: LLaDAForCausalLM) -> list[tuple[type[BaseException], Callable[[], Any]]]:
    """Calls that fail, from the first look at an argument to the middle of a run in C++, with their errors."""
    def numbers(*values: int) -> Any:
        return np.array(values, np.int32)

    def hidden(*arguments: Any) -> Callable[[], Any]:
        return lambda: model._backend.hidden(*arguments)

    def raises(step: Any) -> None:
        raise KeyError(step.index)

    def round_with_cache() -> None:
        task = InferTask("x", range(20), max_tokens=8)
        task.bind_kvcache(damaged.create_kv_cache())
        damaged.batch_infer_one_round([task])

    def same_cache_twice() -> None:
        cache = model.create_kv_cache()
        model._backend.hidden(numbers(1, 2), numbers(1, 1), numbers(0), numbers(0, 0), [cache._conditional.cache] * 2)

    def beyond_the_cache() -> None:
        cache = model.create_kv_cache()
        model._backend.hidden(numbers(*range(20)), numbers(20), numbers(19), numbers(0), [cache._conditional.cache])
        model._backend.hidden(numbers(1, 2), numbers(2), numbers(0), numbers(25), [cache._conditional.cache])

    def truncate_beyond() -> None:
        cache = model.create_kv_cache()
        model._backend.hidden(numbers(*range(20)), numbers(20), numbers(19), numbers(0), [cache._conditional.cache])
        cache.truncate(21)

    def foreign_cache() -> None:
        model._backend.hidden(numbers(1, 2), numbers(2), numbers(0), numbers(0), [damaged.create_kv_cache()._conditional.cache])

    def dropped_cache() -> None:
        cache = model.create_kv_cache()
        cache.drop()
        model._backend.hidden(numbers(1, 2), numbers(2), numbers(0), numbers(0), [cache._conditional.cache])

    return [
        (TypeError, lambda: model.generate([1] * 20, temprature=1)),
        (ValueError, lambda: model.generate([1] * 20, gen_length=8, constraints={0: [1] * 9})),
        (ValueError, lambda: model.generate([1] * 30, gen_length=8)),
        (ValueError, lambda: model.infill([[MASK] * 20, [1] * 20])),
        (ValueError, lambda: model.score([1] * 20, [2] * 5, mc_num=10, batch_size=3)),
        (ValueError, lambda: model.score([1] * 20, [2] * 5, seed=[1, 2])),
        (TypeError, lambda: model.batch_infer_one_round([InferTask("x", range(20), max_tokens=8), 5])),
        (KeyError, lambda: model.generate([1] * 20, gen_length=8, temperature=1.0, top_k=5, callback=raises)),
        (NonFiniteLogitsError, lambda: damaged.generate([1] * 20, gen_length=8, temperature=1.0, top_p=0.5)),
        (NonFiniteLogitsError, lambda: damaged.score([1] * 20, [2] * 5)),
        (NonFiniteLogitsError, round_with_cache),
        (ValueError, hidden(numbers(1, 99), numbers(2), numbers(0))),
        (ValueError, hidden(numbers(1, 2), numbers(2), numbers(5))),
        (ValueError, hidden(numbers(1, 2), numbers(3), numbers(0))),
        (ValueError, hidden(numbers(1, 2), numbers(2), numbers(0), numbers(1))),
        (TypeError, hidden(numbers(1, 2), numbers(2), numbers(0), numbers(0), [5])),
        (ValueError, same_cache_twice),
        (ValueError, beyond_the_cache),
        (ValueError, truncate_beyond),
        (ValueError, foreign_cache),
        (ValueError, dropped_cache),
    ]


@pytest.mark.resident
def test_a_thousand_failures_leak_nothing(model: LLaDAForCausalLM, damaged: LLaDAForCausalLM) -> None:
    """1,008 calls of 21 kinds. A leaked canvas, cache or workspace of any kind is a few kilobytes, 48 times over."""
    failures = late_failures(model, damaged)
    wanted = model.generate([1, 2, 3], gen_length=8, temperature=1.0, seed=0).sequences[0]

    def fail(rounds: int) -> None:
        for _ in range(rounds):
            for error, call in failures:
                with pytest.raises(error):
                    call()

    fail(6)
    gc.collect()
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    fail(48)
    gc.collect()
    assert len(failures) * 48 >= 1000
    assert len(os.listdir("/proc/self/fd")) == files
    assert resident() - before < 1 << 20
    assert np.array_equal(model.generate([1, 2, 3], gen_length=8, temperature=1.0, seed=0).sequences[0], wanted)
