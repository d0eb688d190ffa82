"""The tokenizer of a GGUF file: that of the folder it was written from, or refused by name."""
import re

import gguf_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_native import LLaDAForCausalLM, ModelFormatError, UnsupportedModelError
from llada_native.gguf_checkpoint import GGUFCheckpoint
from llada_native.gguf_tokenizer import tokenizer_files
from llada_native.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def demo_gguf(tmp_path_factory):
    return LLaDAForCausalLM(gguf_files.demo_file(tmp_path_factory.mktemp("demo") / "demo.gguf"))


def test_the_demo_model_answers_from_a_gguf_file(demo, demo_gguf):
    assert demo_gguf.dtype == demo.dtype == "bfloat16"
    for prompt in ("Sort these numbers: 31, 7, 52, 12.", "What is 17 plus 25?"):
        one, other = (model.generate(prompt, gen_length=64) for model in (demo, demo_gguf))
        assert one.text == other.text and np.array_equal(one.sequences, other.sequences)


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_the_tokenizer_is_that_of_the_folder(demo, demo_gguf, text):
    one, other = demo.tokenizer, demo_gguf.tokenizer
    assert one.encode(text) == other.encode(text)
    assert one.decode(one.encode(text)) == other.decode(one.encode(text))
    chat = [{"role": "user", "content": text}]
    assert one.encode_chat(chat) == other.encode_chat(chat)


def test_decomposed_text_is_composed(demo_gguf):
    assert demo_gguf.tokenizer.encode("cafe\u0301") == demo_gguf.tokenizer.encode("caf\u00e9")


def test_no_beginning_of_text_twice(demo_gguf):
    """The file says add_bos_token, and the template begins with it."""
    ids = demo_gguf.tokenizer.encode_chat([{"role": "user", "content": "a"}])
    assert ids.count(506) == 1 and 506 not in demo_gguf.tokenizer.encode("a")


def test_special_tokens(demo_gguf):
    tokenizer = demo_gguf.tokenizer
    assert (tokenizer.token_id("<|eot_id|>"), tokenizer.token_id("<|mdm_mask|>")) == (511, 508)
    assert demo_gguf.generate("What is 17 plus 25?").finish_reason == ["stop"]
    assert tokenizer.decode([508]) == "" and tokenizer.decode([508], skip_special_tokens=False) == "<|mdm_mask|>"


def test_splitting_words_as_qwen2():
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    from llada_native.byte_level import PATTERNS

    split = {name: [text for text, _ in Split(Regex(pattern), "isolated").pre_tokenize_str("It's 42!?\n\nx  y")]
             for name, pattern in PATTERNS.items()}
    for name, words in split.items():
        assert words == ["It", "'s", " ", "4", "2", "!?\n\n", "x", " ", " y"], name


def test_without_a_tokenizer(tmp_path):
    path, _ = gguf_files.pair(tmp_path, "F32", "diffuse")
    model = LLaDAForCausalLM(path)
    assert model.tokenizer is None and model.config.mask_token_id == 58
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        model.generate("hello")


WRONG_TOKENIZERS = {
    "another model": (UnsupportedModelError, "tokenizer.ggml.model = 'llama'", {"model": "llama"}),
    "a list for a model": (ModelFormatError, "tokenizer.ggml.model: expected text, found a list of 2", {"model": [1, 2]}),
    "another way to split": (UnsupportedModelError, "tokenizer.ggml.pre = 'gpt-4o'", {"pre": "gpt-4o"}),
    "no way to split": (ModelFormatError, "required key 'tokenizer.ggml.pre' is missing", {"pre": None}),
    "a number for a name": (ModelFormatError, "tokenizer.ggml.pre: expected text, found 3", {"pre": 3}),
    "no tokens": (ModelFormatError, "required key 'tokenizer.ggml.tokens' is missing", {"tokens": None}),
    "numbers for tokens": (ModelFormatError, "tokenizer.ggml.tokens: expected a list of texts, found a list of 3", {"tokens": [1, 2, 3]}),
    "a token twice": (ModelFormatError, "tokenizer.ggml.tokens: expected none twice, found 'a'", {"tokens": ["a", "b", "a"]}),
    "too few types": (ModelFormatError, "tokenizer.ggml.token_type: expected 512 whole numbers, found a list of 2", {"token_type": [1, 1]}),
    "types in words": (ModelFormatError, "tokenizer.ggml.token_type: expected 512 whole numbers", {"token_type": ["1"] * 512}),
    "an unknown type": (ModelFormatError, "tokenizer.ggml.token_type: expected numbers from 1 to 5, found 9", {"token_type": [9] * 512}),
    "no merges": (ModelFormatError, "required key 'tokenizer.ggml.merges' is missing", {"merges": None}),
    "a merge of one": (ModelFormatError, "tokenizer.ggml.merges: expected two tokens with a space between them, found 'a'",
                       {"merges": ["a"]}),
    "a merge of strangers": (ModelFormatError, "not a valid tokenizer", {"merges": ["zzzz yyyy"]}),
    "an end beyond the tokens": (ModelFormatError, "tokenizer.ggml.bos_token_id: expected a token id from 0 to 511, found 512",
                                 {"bos_token_id": 512}),
    "an end that is text": (ModelFormatError, "tokenizer.ggml.bos_token_id: expected a token id", {"bos_token_id": "<s>"}),
}


@pytest.mark.parametrize("case", WRONG_TOKENIZERS)
def test_tokenizers_that_are_refused(tmp_path, case):
    error, message, changes = WRONG_TOKENIZERS[case]
    path = gguf_files.demo_file(tmp_path / "demo.gguf", **changes)
    with pytest.raises(error, match=re.escape(message)) as caught:
        LLaDAForCausalLM(path)
    assert str(path) in str(caught.value)


def test_more_tokens_than_rows(tmp_path):
    tokens = ["tt", "t", *(f"t{i}" for i in range(600))]
    path = gguf_files.demo_file(tmp_path / "demo.gguf", tokens=tokens, token_type=[1] * 602, merges=["t t"])
    with pytest.raises(ModelFormatError, match="expected token ids below 512"):
        LLaDAForCausalLM(path)


def test_tokenizers_of_files_say_which_file(tmp_path):
    path = gguf_files.demo_file(tmp_path / "demo.gguf")
    tokenizer = Tokenizer(path, tokenizer_files(path, GGUFCheckpoint(path).metadata))
    assert tokenizer.path == path
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Tokenizer(path, {"tokenizer.json": "{}", "tokenizer_config.json": "{}"})
