"""Names and arguments of the API, to the letter and by position; devices, and max_tokens."""
from __future__ import annotations

import inspect

import numpy as np
import pytest
from rounds import prompt_of

import llada_native
from llada_native import DeviceType, InferTask, LLaDABatchedTask, LLaDAForCausalLM, LLaDAForCauslLM

CPU = DeviceType.DEVICE_TYPE_CPU
GENERATE_NAMES = ("prompts", "max_steps", "gen_length", "block_length", "temperature_", "cfg_scale", "remasking", "mask_id",
                  "logits_eos_inf", "confidence_eos_eot_inf", "verbose", "topp_", "topk_")
OTHERS = {"DEVICE_TYPE_NVIDIA": 1, "DEVICE_TYPE_CAMBRICON": 2, "DEVICE_TYPE_ASCEND": 3, "DEVICE_TYPE_METAX": 4, "DEVICE_TYPE_MOORE": 5,
          "DEVICE_TYPE_ILUVATAR": 6, "DEVICE_TYPE_KUNLUN": 7, "DEVICE_TYPE_HYGON": 8}


@pytest.fixture(scope="module")
def model(tiny):
    return LLaDAForCausalLM.from_pretrained(tiny[0], num_threads=1)


def test_both_spellings_are_one_class():
    assert LLaDAForCauslLM is LLaDAForCausalLM and "LLaDAForCauslLM" in llada_native.__all__


def test_signatures_to_the_letter():
    def names(function, kind=inspect.Parameter.POSITIONAL_OR_KEYWORD):
        return tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind is kind and p.name not in ("self", "cls"))

    assert names(LLaDAForCauslLM) == names(LLaDAForCauslLM.from_pretrained) == ("model_dir_path", "device", "ndev", "max_tokens")
    assert names(LLaDAForCauslLM.generate) == GENERATE_NAMES
    assert names(InferTask) == ("id", "tokens", "max_tokens", "temperature", "topk", "topp", "end_tokens")
    assert names(LLaDABatchedTask) == ("tasks",)
    assert names(InferTask.bind_kvcache) == ("kv_cache", "pos")


def test_constructor_takes_its_arguments_by_position(tiny):
    loaded = LLaDAForCauslLM(tiny[0], CPU, 1, 20)
    assert loaded.max_tokens == loaded.max_context_len() == 20
    again = LLaDAForCauslLM.from_pretrained(str(tiny[0]), DeviceType(0), 1, 30)
    assert again.max_context_len() == 30 and LLaDAForCauslLM(tiny[0]).max_context_len() == 512
    assert np.array_equal(loaded.forward([1, 2, 3]), again.forward([1, 2, 3]))


# One a name, none of them its default.
VALUES = (6, 8, 4, 0.9, 0.5, "margin", 57, True, "compat", False, 0.8, 9)


def test_positions_of_generate_mean_their_names(model):
    """The same values by keyword, by the names without underscore and through every door give the same; one other value does not."""
    prompt = prompt_of(0, 7)
    by_name = dict(zip(GENERATE_NAMES[1:], VALUES, strict=True))
    plain = {"temperature_": "temperature", "topp_": "top_p", "topk_": "top_k"}
    by_option = {plain.get(name, name): value for name, value in by_name.items()}
    wanted = model.generate(prompt, **by_option, seed=3)
    for found in (model.generate(prompt, *VALUES, seed=3), model.generate(prompts=prompt, **by_name, seed=3),
                  model.generate_with_cpp_model(prompt, *VALUES, seed=3), llada_native.generate(prompt, model, **by_name, seed=3),
                  llada_native.generate_with_cpp_model(prompt, model, **by_name, seed=3)):
        assert np.array_equal(found.sequences[0], wanted.sequences[0]) and found.backend == "native"
        assert np.array_equal(found.confidence[0], wanted.confidence[0], equal_nan=True)
        assert np.array_equal(found.commit_step[0], wanted.commit_step[0])
    changed = {"max_steps": 8, "block_length": 8, "temperature_": 0.3, "cfg_scale": 0.0, "remasking": "entropy", "topp_": 0.3, "topk_": 2}
    for name, value in changed.items():
        found = model.generate(prompt, *{**by_name, name: value}.values(), seed=3)
        assert not np.array_equal(found.confidence[0], wanted.confidence[0], equal_nan=True), name


def test_devices_by_name_and_number():
    assert {d.name: d.value for d in DeviceType} == {"DEVICE_TYPE_CPU": 0, **OTHERS}


@pytest.mark.parametrize("name", OTHERS)
def test_other_devices_are_refused_by_name(tiny, name):
    with pytest.raises(ValueError, match=rf"^device: .*DEVICE_TYPE_CPU.* found {name}$"):
        LLaDAForCausalLM(tiny[0], DeviceType[name])


@pytest.mark.parametrize(("device", "kind"), [(9, ValueError), (-1, ValueError), ("cuda", TypeError), (True, TypeError), (None, TypeError)])
def test_what_is_no_device(tiny, device, kind):
    with pytest.raises(kind, match=r"^device: expected a DeviceType.*, found "):
        LLaDAForCausalLM(tiny[0], device)


@pytest.mark.parametrize("device", ["cpu", "CPU"])
def test_a_device_by_its_name(tiny, device):
    with LLaDAForCausalLM(tiny[0], device) as model:
        assert model.backend == "native"


def test_two_devices_are_refused_with_a_pointer(tiny):
    with pytest.raises(ValueError, match=r"^ndev: expected 1, found 2.*num_threads"):
        LLaDAForCausalLM(tiny[0], CPU, 2)
    for wrong, kind in ((0, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(kind, match=r"^ndev: "):
            LLaDAForCausalLM(tiny[0], CPU, wrong)


def test_max_tokens_bounds_every_entry(tiny):
    small = LLaDAForCausalLM(tiny[0], max_tokens=20)
    assert len(small.generate(prompt_of(0, 12), gen_length=8).sequences[0]) == 20
    assert small.forward(np.arange(20)).shape == (20, 64)
    task = InferTask("long", prompt_of(0, 13), 8)
    for call in (lambda: small.generate(prompt_of(0, 13), gen_length=8), lambda: small.batch_infer_one_round([task]),
                 lambda: next(small.stream(prompt_of(0, 13), gen_length=8)), lambda: small.forward(np.arange(21)),
                 lambda: small.forward_logits_batch(np.zeros((2, 21), int))):
        with pytest.raises(ValueError, match=r"max_tokens.*20"):
            call()
    for wrong in (513, 0):
        with pytest.raises(ValueError, match=rf"^max_tokens: expected 1 to 512, found {wrong}$"):
            LLaDAForCausalLM(tiny[0], CPU, 1, wrong)
