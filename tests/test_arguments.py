"""Bad arguments: each is refused with TypeError or ValueError, and the message names it, what was expected and what was found."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llada_native
from llada_native import GenerationOptions, LLaDAForCausalLM, ModelFormatError, ModelMemoryError, UnsupportedModelError
from llada_native.loading import DEFAULT_GROUP_SIZE

CONFIG = folders.config(n_kv_heads=2, max_sequence_length=32)
BACKENDS = ("native", "reference")
HUGE = 10**400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.write(tmp_path_factory.mktemp("model"), CONFIG, folders.tensors(CONFIG))


@pytest.fixture(scope="module")
def model(folder: Path) -> LLaDAForCausalLM:
    return LLaDAForCausalLM(folder, num_threads=1)


def shown(value: object) -> str:
    """A value as it ends a message."""
    return re.escape(repr(value)) + "$"


def label(part: object) -> str:
    """The id of a test's parameter, without addresses."""
    return part.__name__ if isinstance(part, type) else re.sub(r" at 0x\w+", "", repr(part))[:40]


# ---- options

WHOLE = "expected a whole number(?: or 'auto')?, found "
NUMBER = "expected a number, found "
BOOLEAN = "expected True or False, found "
TOKEN = "expected a token id, found "
COUNTS = ("max_steps", "gen_length", "block_length")
REALS = ("temperature", "cfg_scale")
TOKENS = ("mask_id", "eos_id", "eot_id")
FLAGS = ("logits_eos_inf", "confidence_eos_eot_inf")

TYPES = [
    *((name, value, WHOLE) for name in COUNTS for value in (4.0, "4", True, [4], np.float32(4), np.array([4]), Fraction(4))),
    *((name, value, NUMBER)
      for name in REALS for value in ("0.5", True, [0.5], 1j, Decimal("0.5"), Fraction(1, 2), np.bool_(True))),
    *((name, value, TOKEN) for name in TOKENS for value in (1.0, "58", True, [58])),
    *((name, value, "expected True or False, or 'compat', found " if name == "confidence_eos_eot_inf" else BOOLEAN)
      for name in FLAGS for value in (1, 0, "yes", "True", [], np.int8(1))),
    *(("remasking", value, "expected one of 'low_confidence', 'random', 'entropy', 'margin', found ")
      for value in (1, True, ["random"], b"random")),
]


@pytest.mark.parametrize(("name", "value", "expected"), TYPES, ids=label)
def test_wrong_type(model: LLaDAForCausalLM, name: str, value: object, expected: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: {expected}{shown(value)}"):
        model.generate([1, 2, 3], **{"gen_length": 4, name: value})


RANGES = [
    *((name, value, "1 to 16777216") for name in COUNTS for value in (0, -1, np.int64(-8), (1 << 24) + 1, 10**30, HUGE)),
    *((name, value, "") for name in REALS
      for value in (-0.1, -1, float("nan"), float("inf"), -float("inf"), np.float32("nan"),
                    np.float32("inf"), np.float16("inf"), HUGE, -HUGE)),
    *((name, value, "(?!a finite number of at least 0,)") for name in REALS for value in (1e39, 1e300)),
    *((name, value, "a token id from 0 to 63") for name in TOKENS for value in (-1, 64, np.int32(-1), 10**30)),
    *(("remasking", value, "one of 'low_confidence', 'random'")
      for value in ("high_confidence", "", "Random")),
]


@pytest.mark.parametrize(("name", "value", "expected"), RANGES, ids=label)
def test_out_of_range(model: LLaDAForCausalLM, name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected {expected}.*, found ") as info:
        model.generate([1, 2, 3], **{"gen_length": 4, name: value})
    assert str(info.value).endswith((str(value), repr(value)))


@pytest.mark.parametrize("name", REALS)
@pytest.mark.parametrize("value", [0, 1, np.int8(1), 0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), 1e6], ids=label)
def test_real_numbers_of_every_kind(model: LLaDAForCausalLM, name: str, value: Any) -> None:
    same = model.generate([1, 2, 3], gen_length=4, seed=3, **{name: float(value)})
    assert model.generate([1, 2, 3], gen_length=4, seed=3, **{name: value}).sequences[0].tolist() == same.sequences[0].tolist()


@pytest.mark.parametrize(("options", "message"), [
    ({"gen_length": 12, "block_length": 5}, r"^block_length: expected a divisor of gen_length \(12\), found 5; 4 or 6 would do$"),
    ({"gen_length": 12, "block_length": 13}, r"^block_length: .*gen_length \(12\), found 13; 12 would do$"),
    ({"gen_length": 7, "block_length": 2}, r"^block_length: .*gen_length \(7\), found 2; 1 or 7 would do$"),
    ({"gen_length": 12, "block_length": 4, "max_steps": 8}, r"^max_steps: .*blocks \(3 = .*12.*4\), found 8; 6 or 9 would do$"),
    ({"gen_length": 12, "block_length": 4, "max_steps": 2}, r"^max_steps: .*blocks \(3 = .*12.*4\), found 2; 3 would do$"),
    ({"max_new_tokens": 12, "block_length": 1, "steps": 13}, r"^max_steps: .*blocks \(12 = .*\), found 13; 12 or 24 would do$"),
])
def test_lengths_that_do_not_divide(model: LLaDAForCausalLM, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        model.generate([1, 2, 3], **options)
    key = str(info.value).split(":")[0]
    for value in re.findall(r"\d+", str(info.value).split(";")[1]):
        others = {k: v for k, v in options.items() if {"steps": "max_steps"}.get(k, k) != key}
        assert len(model.generate([1, 2, 3], **others, **{key: int(value)}).sequences[0]) > 3, "what would do does"


def test_the_default_block_divides_the_length(demo: LLaDAForCausalLM) -> None:
    """The demo model's is 32. The largest divisor of 16 to 32 if there is one, else the smallest above: never blocks of a few tokens."""
    for length in range(1, 600):
        divisors = [d for d in range(1, length + 1) if length % d == 0]
        fitting = [d for d in divisors if 16 <= d <= 32]
        expected = length if length < 32 else fitting[-1] if fitting else min(d for d in divisors if d > 32)
        assert demo.options(gen_length=length).block_length == expected, length


@pytest.mark.parametrize(("name", "nearest"), [
    ("temprature", "temperature"), ("gen_lenght", "gen_length"), ("genlength", "gen_length"),
    ("blocklength", "block_length"), ("step", "steps"), ("maxsteps", "max_steps"), ("cfgscale", "cfg_scale"),
    ("cfg", "cfg_scale"), ("remask", "remasking"), ("mask_token", "mask_token_id"), ("eos_token", "eos_token_id"),
    ("max_tokens", "max_new_tokens"),
    ("logits_eos", "logits_eos_inf"), ("confidence_eos_inf", "confidence_eos_eot_inf"), ("prompt", "prompts"), ("seeds", "seed"),
    ("attention_masks", "attention_mask"), ("attn_mask", "attention_mask"), ("call_back", "callback"), ("callbacks", "callback"),
    ("verbos", "verbose"), ("chats", "chat"),
])
def test_unknown_argument_names_the_nearest(model: LLaDAForCausalLM, name: str, nearest: str) -> None:
    with pytest.raises(TypeError, match=f"^unknown argument '{name}': did you mean '{nearest}'"):
        model.generate([1, 2, 3], **{name: 4})


@pytest.mark.parametrize("name", ["", "zzz", "do_sample", "température", "a" * 1000])
def test_unknown_argument_is_named(model: LLaDAForCausalLM, name: str) -> None:
    with pytest.raises(TypeError, match=f"^unknown argument '{name}'"):
        model.generate([1, 2, 3], **{name: 4})


@pytest.mark.parametrize("name", ["seed", "streamer", "attention_mask", "constraints", "chat"])
def test_an_argument_of_another_call(model: LLaDAForCausalLM, name: str) -> None:
    told = rf"^unknown argument '{name}': it is no option but one of a call, LLaDAForCausalLM.generate\(..., {name}=...\)$"
    with pytest.raises(TypeError, match=told):
        model.options(**{name: None})
    if name in ("streamer", "attention_mask", "constraints"):
        with pytest.raises(TypeError, match=told):
            model.infill([58], **{name: None})


def test_hints_are_what_a_call_takes(model: LLaDAForCausalLM) -> None:
    with pytest.raises(TypeError, match="unknown argument 'bogus': did you mean 'verbose'"):
        model.generate([1, 2, 3], bogus=1)
    with pytest.raises(TypeError, match="unknown argument 'drafs': did you mean 'drafts'"):
        model.stream([1, 2, 3], drafs=1)
    with pytest.raises(TypeError, match=r"unknown argument 'bogus': (?!.*(verbose|callback))"):
        model.stream([1, 2, 3], bogus=1)
    with pytest.raises(TypeError, match=r"^unknown argument 'bogus': expected one of max_steps, [\w, ]+$") as info:
        model.options(bogus=1)
    assert not {"verbose", "seed", "prompts"} & set(re.findall(r"\w+", str(info.value)))


@pytest.mark.parametrize(("given", "message"), [
    ({"logits_eos_inf": True}, "logits_eos_inf: the checkpoint names no end-of-text token .* eos_id must be given"),
    ({"logits_eos_inf": True, "eot_id": 3}, "logits_eos_inf: the checkpoint names no end-of-text token"),
    ({"confidence_eos_eot_inf": True}, "confidence_eos_eot_inf: the checkpoint names no end token .* one must be given"),
    ({"confidence_eos_eot_inf": "compat"}, "confidence_eos_eot_inf: the checkpoint names no end token"),
])
def test_rules_about_end_tokens_need_one(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        GenerationOptions.resolve(given, {"mask_id": 5}, 64)
    GenerationOptions.resolve(given, {"mask_id": 5, "eos_id": 1}, 64)
    GenerationOptions.resolve({"logits_eos_inf": False, "confidence_eos_eot_inf": False}, {"mask_id": 5}, 64)


@pytest.mark.parametrize(("alias", "name"), [
    ("steps", "max_steps"), ("max_new_tokens", "gen_length"), ("mask_token_id", "mask_id"), ("eos_token_id", "eos_id"),
    ("eot_token_id", "eot_id"),
])
def test_alias(model: LLaDAForCausalLM, alias: str, name: str) -> None:
    for order in ((alias, name), (name, alias)):
        with pytest.raises(TypeError, match=f"^{name}: given twice.*'({alias}|{name})'$"):
            model.generate([1, 2, 3], **dict.fromkeys(order, 4))
    with pytest.raises(TypeError, match=f"^{name}: {WHOLE if name in COUNTS else TOKEN}'4'$"):
        model.generate([1, 2, 3], **{alias: "4"})


def test_a_checkpoint_without_a_mask_token(tmp_path: Path) -> None:
    config = {k: v for k, v in CONFIG.items() if k != "mask_token_id"}
    with LLaDAForCausalLM(folders.write(tmp_path, config, folders.tensors(config)), num_threads=1) as model:
        with pytest.raises(ValueError, match=r"^mask_id: .*must be given$"):
            model.generate([1, 2, 3], gen_length=4)
        assert len(model.generate([1, 2, 3], gen_length=4, mask_id=58).sequences[0]) == 7


@pytest.mark.parametrize(("name", "value"), [("gen_length", 0), ("temprature", 1), ("seed", -1), ("attention_mask", [1])])
def test_stream_refuses_at_the_call(model: LLaDAForCausalLM, name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        model.stream([1, 2, 3], **{"gen_length": 4, name: value})


# ---- seed, chat, callback


@pytest.mark.parametrize(("seed", "error", "message"), [
    (-1, ValueError, "expected .*, found -1$"),
    (np.int64(-5), ValueError, "expected .*, found -5$"),
    (1 << 200, ValueError, f"expected .*, found {1 << 200}$"),
    ([1, -1], ValueError, "expected .*, found -1$"),
    ([1], ValueError, "expected one for each of 2 prompts, found 1$"),
    ([1, 2, 3], ValueError, "expected one for each of 2 prompts, found 3$"),
    ([], ValueError, "expected one for each of 2 prompts, found 0$"),
    (np.arange(3), ValueError, "expected one for each of 2 prompts, found 3$"),
    *((seed, TypeError, "expected a whole number.*, found ")
      for seed in (1.0, float("nan"), "7", b"77", True, {1: 2}, {1, 2}, [1.5, 2], [None, 1], ["1", "2"], [True, False],
                   [[1], [2]], [1, [2]], [None, []], np.array(5.0), np.array([1.0, 2.0]), np.array([[1, 2]]),
                   np.random.default_rng(0))),
], ids=label)
def test_seed(model: LLaDAForCausalLM, seed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^seed(\[[01]\])?: {message}"):
        model.generate([[1, 2, 3], [4, 5, 6]], gen_length=4, seed=seed)


@pytest.mark.parametrize("chat", ["yes", "", "Auto", 0, 1, 1.0, 2, [], {}, float("nan")], ids=label)
def test_chat(model: LLaDAForCausalLM, chat: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^chat: expected 'auto', True or False, found {shown(chat)}"):
        model.generate([1, 2, 3], gen_length=4, chat=chat)


def test_callback_that_is_none(model: LLaDAForCausalLM) -> None:
    with pytest.raises(TypeError, match=r"callback.*5"):
        model.generate([1, 2, 3], gen_length=4, callback=5)


# ---- prompts and masks

INHOMOGENEOUS = [[[1, 2], [[3, 4], [5]]], [[[1, 2], [3]], [4]], [[[1, 2], [3]]]]


@pytest.mark.parametrize("prompts", [
    None, 5, 1.5, object(), b"bytes", {1, 2}, iter([1]), {"role": "user", "content": "one message"}, [1.5, 2], [True, False],
    [1, None], [1, "a"], ["a", 1], ["a", [1, 2]], [[1, 2], 3], [[1], [[2, 3]]], [["a", "b"]], [[1, 2], ["a"]], [[1, 2], [0.5]],
    [{"role": "user", "content": "a"}, "b"], np.array(3), np.zeros((1, 2, 3), int), np.ones(3), np.array(["a"]), np.array([True]),
    np.array([None]), [10**30], *INHOMOGENEOUS,
], ids=label)
def test_prompts_of_the_wrong_kind(model: LLaDAForCausalLM, prompts: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^prompts(\[\d\])?: expected "):
        model.generate(prompts, gen_length=4)


def test_what_is_no_text_among_texts_is_named(model: LLaDAForCausalLM) -> None:
    with pytest.raises(TypeError, match=r"^prompts\[1\]: expected text like the others, found 1$"):
        model.generate(["a", 1])


@pytest.mark.parametrize(("prompts", "message"), [
    ([], r"^prompts.*expected at least one.*found none$"),
    ([[]], r"^prompts\[0\]: expected at least one token, found none$"),
    ([[1], []], r"^prompts\[1\]: expected at least one token, found none$"),
    (np.zeros((0, 3), int), "^prompts: expected at least one, found none$"),
    (np.zeros((2, 0), int), r"^prompts\[0\]: expected at least one token, found none$"),
    ([1, -1], r"^prompts\[0\]: expected token ids from 0 to 63, found -1$"),
    ([[1], [2, 64]], r"^prompts\[1\]: expected token ids from 0 to 63, found 64$"),
    (np.array([1, 1 << 32]), r"^prompts\[0\]: expected token ids from 0 to 63, found 4294967296$"),
    ([1 << 63], r"^prompts\[0\]: expected token ids from 0 to 63, found 9223372036854775808$"),
    ("", "^prompts: text needs a tokenizer"),
    (["a", "b"], "^prompts: text needs a tokenizer"),
    ([[{"role": "user", "content": "a"}]], "^prompts: text needs a tokenizer"),
    ([1] * 29, r"^prompts: .*max_tokens \(32\), found .*\b29\b.*\b4$"),
    ([[1], [1] * 29], r"^prompts: .*max_tokens \(32\), found .*\b29\b.*\b4$"),
], ids=label)
def test_prompts_that_do_not_fit(model: LLaDAForCausalLM, prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(prompts, gen_length=4)


def test_one_message_is_not_a_conversation(model: LLaDAForCausalLM) -> None:
    with pytest.raises(TypeError, match=r"^prompts: expected a list of messages, found a single message$"):
        model.generate({"role": "user", "content": "Hello"}, gen_length=4)


def test_the_longest_prompt_fits(model: LLaDAForCausalLM) -> None:
    assert len(model.generate([1] * 28, gen_length=4).sequences[0]) == 32


def test_an_answer_that_is_too_long_names_its_length(model: LLaDAForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"gen_length.*32.*30|30.*gen_length.*32|32.*gen_length.*30"):
        model.generate([1, 2, 3], gen_length=30)


@pytest.mark.parametrize(("messages", "message"), [
    ([{}], r"messages\[0\]: expected .*role.*content.*found \{\}$"),
    ([{"role": "user"}], r"messages\[0\]: expected .*content.*found \{'role': 'user'\}$"),
    ([{"role": "user", "content": "a"}, {"role": "user", "content": 5}], r"messages\[1\]: expected .*found .*5"),
    ([{"role": None, "content": "a"}], r"messages\[0\]: expected .*role.*found .*None"),
])
def test_messages(demo: LLaDAForCausalLM, messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo.generate(messages, gen_length=4)


@pytest.mark.parametrize("call", ["generate", "forward", "forward_logits_batch"])
@pytest.mark.parametrize(("mask", "error", "message"), [
    ("x", TypeError, "expected (?!text)"),
    (5, TypeError, "expected (?!text)"),
    ([[1, 1, 1], ["a", "b", "c"]], TypeError, "expected whole numbers.*, found dtype "),
    ([[1.0] * 3] * 2, TypeError, "expected whole numbers.*, found dtype float64"),
    (np.ones((2, 3, 1), int), TypeError, "expected (?!text)"),
    (INHOMOGENEOUS[0], TypeError, "expected "),
    ([1, 1, 1], ValueError, r"expected rows of \[3, 3\] entries, found \[3\]"),
    ([[1, 1, 1]], ValueError, r"expected rows of \[3, 3\] entries, found \[3\]"),
    ([[1, 1, 1], [1, 1]], ValueError, r"expected rows of \[3, 3\] entries, found \[3, 2\]"),
    ([[1, 1, 1], [1, 2, 1]], ValueError, "expected only 0 and 1"),
    ([[1, 1, 1], [-1, 1, 1]], ValueError, "expected only 0 and 1"),
], ids=label)
def test_attention_mask(model: LLaDAForCausalLM, call: str, mask: Any, error: type[Exception], message: str) -> None:
    options = {"gen_length": 4} if call == "generate" else {}
    with pytest.raises(error, match=f"^attention_mask: {message}"):
        getattr(model, call)([[1, 2, 3], [4, 5, 6]], attention_mask=mask, **options)


def test_attention_mask_that_drops_a_prompt(model: LLaDAForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"attention_mask.*prompts\[1\]|prompts\[1\].*attention_mask"):
        model.generate([[1, 2], [3, 4]], gen_length=4, attention_mask=[[1, 1], [0, 0]])


def test_attention_mask_of_text(demo: LLaDAForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"^attention_mask: expected only with integer prompts$"):
        demo.generate("Hello", gen_length=4, attention_mask=[1])


# ---- forward


@pytest.mark.parametrize(("ids", "error", "message"), [
    (None, TypeError, "expected (?!text)"),
    ("text", TypeError, "expected (?!text)"),
    (5, TypeError, "expected (?!text)"),
    ([0.5, 1], TypeError, "expected .*, found dtype float64"),
    ([[1, 2], 3], TypeError, "expected "),
    (np.zeros((1, 1, 1), int), TypeError, "expected (?!text)"),
    (INHOMOGENEOUS[0], TypeError, "expected "),
    ([], ValueError, "expected at least one token in every row, found none"),
    ([[1], []], ValueError, "expected at least one token in every row, found none"),
    (np.zeros((0, 4), int), ValueError, "expected at least one token in every row, found none"),
    ([1] * 33, ValueError, r"expected at most max_tokens \(32\), found 33"),
], ids=label)
def test_forward(model: LLaDAForCausalLM, ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^input_ids: {message}"):
        model.forward(ids)


@pytest.mark.parametrize(("ids", "row", "found"), [([1, 64], 0, 64), ([[1], [-1]], 1, -1)])
def test_forward_of_tokens_outside_the_vocabulary(model: LLaDAForCausalLM, ids: Any, row: int, found: int) -> None:
    with pytest.raises(ValueError, match=rf"^input_ids\[{row}\]: expected token ids from 0 to 63, found {found}$"):
        model.forward(ids)


def test_the_longest_sequence_has_logits(model: LLaDAForCausalLM) -> None:
    assert model.forward([1] * 32).shape == (32, 64)


@pytest.mark.parametrize("ids", [
    [], [1, 2], 5, "text", np.zeros((0, 3), int), np.zeros((1, 1, 1), int), [[1, 2], [3]],
], ids=label)
def test_forward_logits_batch_needs_two_dimensions(model: LLaDAForCausalLM, ids: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^input_ids: expected .*two dimensions.*, found "):
        model.forward_logits_batch(ids)


# ---- models


@pytest.mark.parametrize(("arguments", "error", "message"), [
    *(({"dtype": dtype}, error, rf"^dtype: expected one of .*auto.*float32.*bfloat16.*, found {shown(dtype)}")
      for dtype, error in (*dict.fromkeys(("half", "int3", "", "Float32"), ValueError).items(),
                           (None, TypeError), (32, TypeError), ([], TypeError), (np.float32, TypeError))),
    *(({"num_threads": threads}, ValueError, rf"^num_threads: expected 1 to 1024, found {threads}$")
      for threads in (0, -1, 1025, 1 << 40, -(1 << 40))),
    *(({"num_threads": threads}, TypeError, "^num_threads: expected a whole number.*, found " + shown(threads))
      for threads in ("2", 2.5, True, [2], float("nan"))),
    *(({"isa": isa}, ValueError, f"^isa: expected .*scalar.*, found {shown(isa)}")
      for isa in ("sse2", "AVX2", "scalar ", "avx2;", "")),
    *(({"isa": isa}, TypeError, f"^isa: expected .*scalar.*, found {shown(isa)}") for isa in (5, 0, True, ["scalar"])),
    ({"model_dir_path": 5}, TypeError, "model_dir_path"),
], ids=label)
def test_constructor(folder: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LLaDAForCausalLM(**{"model_dir_path": folder} | arguments)


@pytest.mark.parametrize("arguments", [{"dtype": "half"}, {"num_threads": 0}, {"isa": "neon"}], ids=label)
def test_the_reference_backend_checks_the_same_arguments(folder: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"dtype|num_threads|isa|instruction set"):
        LLaDAForCausalLM(folder, backend="reference", **arguments)


@pytest.mark.parametrize("backend", ["gpu", "torch", "", "Native", None, 1, []], ids=label)
def test_backend(folder: Path, backend: Any) -> None:
    error = ValueError if isinstance(backend, str) else TypeError
    with pytest.raises(error, match=f"^backend: expected one of .*native.*reference.*, found {shown(backend)}"):
        LLaDAForCausalLM(folder, backend=backend)


def test_an_unknown_constructor_argument(folder: Path) -> None:
    for make in (LLaDAForCausalLM, LLaDAForCausalLM.from_pretrained):
        with pytest.raises(TypeError, match="unexpected keyword argument 'device_map'"):
            make(folder, device_map="auto")


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (-3, ValueError), (1025, ValueError), (1 << 40, ValueError),
                                                ("2", TypeError), (1.5, TypeError), (None, TypeError)])
def test_setting_num_threads(model: LLaDAForCausalLM, threads: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^num_threads: .*found {shown(threads)}"):
        model.num_threads = threads
    assert model.num_threads == 1


@pytest.mark.parametrize(("arguments", "error", "message"), [
    *(({"config": config}, TypeError, "config: expected ") for config in ("folder", None)),
    ({"config": CONFIG | {"d_model": 0}}, ModelFormatError, "config: d_model: expected .*, found 0$"),
    ({"config": CONFIG | {"rope": False}}, UnsupportedModelError, "config: rope = False is not supported"),
    ({"config": {}}, ModelFormatError, "config: architectures: expected .*, found None$"),
    ({"dtype": "auto"}, ValueError, "dtype: expected .*, found 'auto'$"),
    ({"dtype": "half"}, ValueError, "dtype: expected .*float16.*, found 'half'$"),
    *(({"seed": seed}, error, f"seed: expected .*, found {shown(seed)}")
      for seed, error in ((-1, ValueError), ("x", TypeError), (1.5, TypeError))),
    ({"config": CONFIG | {"d_model": 1 << 20, "n_heads": 1 << 15, "n_kv_heads": 1, "embedding_size": 1 << 24}}, ModelMemoryError,
     r"the weights need \d\d+\.\d GiB as bfloat16, and \d+\.\d GiB are available"),
], ids=label)
def test_random_model(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        LLaDAForCausalLM.random(**{"config": CONFIG} | arguments)


def test_a_random_model_in_the_default_groups() -> None:
    given, default = (LLaDAForCausalLM.random(CONFIG, "int4", group_size=size) for size in (DEFAULT_GROUP_SIZE, None))
    assert given.memory() == default.memory()


def test_the_model_of_the_generate_function() -> None:
    with pytest.raises(TypeError, match=r"\bmodel"):
        llada_native.generate([1, 2, 3], model=5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_model_says_so(folder: Path, backend: str) -> None:
    model = LLaDAForCausalLM(folder, num_threads=1, backend=backend)
    model.close()
    model.close()
    for use in (lambda: model.generate([1, 2, 3], gen_length=4), lambda: model.forward([1, 2, 3]), model.memory):
        with pytest.raises(ValueError, match=r"^the model is closed$"):
            use()


# ---- environment

LOAD = """
import sys
import llada_native
try:
    llada_native.LLaDAForCausalLM(sys.argv[1])
except Exception as e:
    print(type(e).__name__, e, sep=": ")
try:
    llada_native.cpu_info()
except Exception as e:
    print(type(e).__name__, e, sep=": ")
"""


def load_with(folder: Path, **variables: str) -> list[str]:
    """The messages of loading a model and of cpu_info in a process with these environment variables."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLADA_")} | variables
    run = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, timeout=60, check=True,
                         env=environment, cwd=Path(llada_native.__file__).parents[1])
    return run.stdout.splitlines()


@pytest.mark.parametrize("isa", ["nonsense", "neon", "AVX2"])
def test_llada_isa_names_an_absent_build(folder: Path, isa: str) -> None:
    messages = load_with(folder, LLADA_ISA=isa)
    assert len(messages) == 2
    for message in messages:
        assert re.match(f"ValueError: .*'{isa}'.*not in this build.*" + ", ".join(llada_native.cpu_info()["isas"]), message)
        assert "LLADA_ISA" in message


def test_llada_isa_names_a_build_that_this_processor_cannot_run(folder: Path) -> None:
    unsupported = [name for name, supported in llada_native.cpu_info()["isas"].items() if not supported]
    if not unsupported:
        pytest.skip("this processor runs every build")
    for message in load_with(folder, LLADA_ISA=unsupported[-1]):
        assert re.match(f"ValueError: .*'{unsupported[-1]}'.*this processor lacks it.*scalar", message)
        assert "LLADA_ISA" in message


@pytest.mark.parametrize("threads", ["nonsense", "0", "-1", "1.5", " 2", "²", "2000", "9" * 30])
def test_llada_num_threads(folder: Path, threads: str) -> None:
    messages = load_with(folder, LLADA_NUM_THREADS=threads)
    assert messages
    for message in messages:
        assert re.fullmatch(f"ValueError: LLADA_NUM_THREADS: expected .*, found '?{threads}'?", message)


def test_empty_variables_mean_the_default(folder: Path) -> None:
    assert load_with(folder, LLADA_ISA="", LLADA_NUM_THREADS="") == []


# ---- anything at all

SCALARS = st.one_of(st.none(), st.booleans(), st.text(max_size=8), st.floats(), st.integers(-3, 40), st.integers(-(2**70), -1),
                    st.integers(2**25, 2**70), st.sampled_from([HUGE, -HUGE, 1j, b"4", Decimal(4), "auto", "random", "compat"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=6)
ARGUMENTS = (*COUNTS, *REALS, *TOKENS, *FLAGS, "remasking", "seed", "chat", "attention_mask", "prompts")


@pytest.mark.parametrize("name", ARGUMENTS)
@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(value=VALUES)
@example(value=float("nan"))
@example(value=float("inf"))
@example(value=HUGE)
@example(value=[])
def test_any_value_is_taken_or_refused_by_name(model: LLaDAForCausalLM, name: str, value: Any) -> None:
    try:
        result = model.generate(**{"prompts": [1, 2, 3], "gen_length": 4, "seed": 0, name: value})
    except (TypeError, ValueError) as e:
        assert type(e) in (TypeError, ValueError)
        assert name in str(e)
        assert "expected" in str(e) or "text needs a tokenizer" in str(e)
    else:
        for ids in result.sequences:
            assert 4 < len(ids) <= 32 and ids.min() >= 0 and ids.max() < 64


@pytest.mark.parametrize("name", ["dtype", "group_size", "cache_dir", "num_threads", "isa", "backend"])
def test_arguments_of_the_model_are_told_from_those_of_a_call(model, name):
    with pytest.raises(TypeError, match=rf"unknown argument '{name}': it is one of the model, LLaDAForCausalLM.from_pretrained\("):
        model.generate([1, 2], **{name: 1})
