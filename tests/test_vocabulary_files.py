"""Dream's vocab.json and merges.txt: the same tokenizer as a tokenizer.json that the tokenizers library wrote of the same training."""
import json
import re

import dream
import folders
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_native import LLaDAForCausalLM, ModelFormatError, convert
from llada_native.tokenizer import Tokenizer

# As Qwen2's own tokenizer.json has it.
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CORPUS = ["It's a model that denoises: it'll write 1234 words, we've said.", "  def f(x):\n\n    return x ** 2  # café", "中文与 Ωmega"] * 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
PLAIN = ["<tool_call>"]  # found in text like a special token, and part of the text
TEXTS = ["It's 42!?\n\nx  y", "a\n\n\n\nb", " \t\r\n  x\r\n", "cafe\u0301 caf\u00e9", "中文Ω 👩🏽‍💻",
         "we'LL\u00a0've", "<|im_start|>user\nhi<|im_end|>\n", "a<tool_call>b <|mask|>", "<|im_end", "x" * 50, ""]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


def trained():
    """A byte-level BPE of a few hundred tokens."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PLAIN])
    return tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of one model, with tokenizer.json and with the files of a slow tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("dream"), trained()
    rows = tokenizer.get_vocab_size()
    ids = {text: tokenizer.token_to_id(text) for text in SPECIAL}
    c = dream.config(vocab_size=rows, mask_token_id=ids["<|mask|>"], eos_token_id=ids["<|endoftext|>"])
    both = [folders.write(folder / name, c, dream.tensors(c)) for name in ("whole", "parts")]
    tokenizer.save(str(both[0] / "tokenizer.json"))
    tokenizer.model.save(str(both[1]))
    options = {"chat_template": TEMPLATE, "eos_token": "<|endoftext|>", "added_tokens_decoder": {
        str(tokenizer.token_to_id(text)): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                                           "special": text in SPECIAL} for text in SPECIAL + PLAIN}}
    for each in both:
        (each / "tokenizer_config.json").write_text(json.dumps(options))
    return both


@pytest.fixture(scope="module")
def tokenizer_pair(pair):
    return [LLaDAForCausalLM(folder, backend="placeholder").tokenizer for folder in pair]


def copied(folder, tmp_path, **texts):
    """The folder with files replaced by texts, or without those whose text is None."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name, text in texts.items():
        path = tmp_path / {"vocab": "vocab.json", "merges": "merges.txt", "options": "tokenizer_config.json",
                           "added": "added_tokens.json"}[name]
        path.unlink() if text is None else path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path


def same(found, wanted, text):
    assert found.encode(text) == wanted.encode(text)
    for skip in (True, False):
        assert found.decode(wanted.encode(text), skip) == wanted.decode(wanted.encode(text), skip)


@pytest.mark.parametrize("text", TEXTS)
def test_the_same_ids_as_of_tokenizer_json(tokenizer_pair, text):
    wanted, found = tokenizer_pair
    same(found, wanted, text)
    assert found.largest_id == wanted.largest_id


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text() | st.sampled_from(SPECIAL + PLAIN + CORPUS)).map("".join))
def test_any_text(tokenizer_pair, text):
    wanted, found = tokenizer_pair
    same(found, wanted, text)


def test_text_comes_back(tokenizer_pair):
    """But for its normal form."""
    import unicodedata

    _, found = tokenizer_pair
    for text in TEXTS:
        assert found.decode(found.encode(text), skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_the_vocabulary_is_used(tokenizer_pair):
    """Of single bytes every text would come back too."""
    _, found = tokenizer_pair
    assert len(found.encode("denoises that model")) < 12


def test_special_tokens_and_chats(pair, tokenizer_pair):
    wanted, found = tokenizer_pair
    messages = [{"role": "user", "content": "ends <|im_end|> here <tool_call>"}]
    assert found.encode_chat(messages) == wanted.encode_chat(messages)
    assert found.encode_chat(messages).count(found.token_id("<|im_end|>")) == 1
    assert found.decode([found.token_id("<|mask|>"), found.token_id("<tool_call>")]) == "<tool_call>"
    models = [LLaDAForCausalLM(folder) for folder in pair]
    answers = [model.generate("What is 2 + 2?", gen_length=8) for model in models]
    assert answers[0].text == answers[1].text
    assert models[1]._defaults["eot_id"] == found.token_id("<|im_end|>")


def test_a_template_of_its_own_file(pair, tmp_path):
    folder = copied(pair[1], tmp_path)
    (folder / "chat_template.jinja").write_text("[{{ messages[0].content }}]")
    tokenizer = LLaDAForCausalLM(folder, backend="placeholder").tokenizer
    assert tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "hi"}])) == "[hi]"


def test_a_converted_folder_has_tokenizer_json(pair, tokenizer_pair, tmp_path):
    out = convert(pair[1], tmp_path / "out")
    assert not (out / "vocab.json").exists()
    for text in TEXTS:
        same(Tokenizer(out), tokenizer_pair[0], text)
    model = LLaDAForCausalLM(out)
    assert model.generate("hello", gen_length=8).text == LLaDAForCausalLM(pair[0]).generate("hello", gen_length=8).text
    assert model.tokenizer.chat_template == TEMPLATE


def test_tokenizer_json_comes_first(pair, tmp_path):
    folder = copied(pair[1], tmp_path, vocab="broken")
    (folder / "tokenizer.json").write_bytes((pair[0] / "tokenizer.json").read_bytes())
    assert LLaDAForCausalLM(folder, backend="placeholder").tokenizer.token_id("<|mask|>") is not None


def test_added_tokens_of_their_own_file(pair, tokenizer_pair, tmp_path):
    """The older file, alone: its tokens are all special. Ids may leave gaps, which the library would fill."""
    last = tokenizer_pair[0].largest_id
    gap = {"<|a|>": last, "<|b|>": last - 3}
    folder = copied(pair[1], tmp_path, options=json.dumps({"chat_template": TEMPLATE}), added=json.dumps(gap))
    tokenizer = LLaDAForCausalLM(folder, backend="placeholder").tokenizer
    assert tokenizer.encode("<|a|>x<|b|>")[::2] == [last, last - 3]
    assert tokenizer.decode([last, last - 3]) == ""


def test_both_files_of_added_tokens(pair, tokenizer_pair, tmp_path):
    """They say the same, and one says more."""
    ids = {text: tokenizer_pair[0].token_id(text) for text in SPECIAL + PLAIN}
    folder = copied(pair[1], tmp_path, added=json.dumps(ids))
    for text in TEXTS:
        same(LLaDAForCausalLM(folder, backend="placeholder").tokenizer, tokenizer_pair[0], text)


def test_lines_of_windows(pair, tokenizer_pair, tmp_path):
    merges = (pair[1] / "merges.txt").read_text().replace("\n", "\r\n")
    folder = copied(pair[1], tmp_path, merges=merges.encode())
    same(LLaDAForCausalLM(folder, backend="placeholder").tokenizer, tokenizer_pair[0], CORPUS[0])


def test_neither_file(pair, tmp_path):
    folder = copied(pair[1], tmp_path, vocab=None, merges=None)
    assert LLaDAForCausalLM(folder, backend="placeholder").tokenizer is None


def test_other_families_have_tokenizer_json(pair, tmp_path):
    """How they split words is not known of such files."""
    c = folders.config()
    folders.write(tmp_path, c, folders.tensors(c))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((pair[1] / name).read_bytes())
    assert LLaDAForCausalLM(tmp_path).tokenizer is None


def edited(change):
    """A change of vocab.json."""
    def text(folder):
        vocabulary = json.loads((folder / "vocab.json").read_text())
        change(vocabulary)
        return {"vocab": json.dumps(vocabulary)}
    return text


def decoder(number, **entry):
    return lambda _: {"options": json.dumps({"added_tokens_decoder": {number: entry}})}


WRONG = {
    "no merges": (lambda _: {"merges": None}, "expected tokenizer.json, or vocab.json and merges.txt, found vocab.json alone"),
    "no vocabulary": (lambda _: {"vocab": None}, "expected tokenizer.json, or vocab.json and merges.txt, found merges.txt alone"),
    "no JSON": (lambda _: {"vocab": "{"}, "vocab.json: not valid JSON"),
    "a list": (lambda _: {"vocab": "[]"}, "vocab.json: expected a JSON object, found list"),
    "text for an id": (edited(lambda v: v.update(a="1")), "vocab.json: token 'a': expected a whole number from 0, found '1'"),
    "a truth for an id": (edited(lambda v: v.update(a=True)), "vocab.json: token 'a': expected a whole number from 0, found True"),
    "an id below 0": (edited(lambda v: v.update(a=-1)), "vocab.json: token 'a': expected a whole number from 0, found -1"),
    "an id twice": (edited(lambda v: v.update(zz=v["a"])), "vocab.json: token 'zz': expected an id of its own, found 64, the id of 'a'"),
    "an id beyond the rows": (edited(lambda v: v.update(zz=5000)), "expected token ids below"),
    "a huge id": (edited(lambda v: v.update(zz=1 << 40)), "not a valid tokenizer"),
    "a byte missing": (edited(lambda v: v.pop("!")), "vocab.json: expected a token for each of the 256 bytes, found 1 missing (!)"),
    "a pointer": (lambda _: {"vocab": "version https://git-lfs.github.com/spec/v1"}, "this is a Git LFS pointer"),
    "a page": (lambda _: {"merges": "<!DOCTYPE html>"}, "merges.txt: this is a web page"),
    "other bytes": (lambda _: {"merges": b"#version: 0.2\n\xff"}, "merges.txt: expected UTF-8 text, found byte 0xff at offset 14"),
    "a merge of one": (lambda _: {"merges": "#version: 0.2\nab\n"},
                       "merges.txt: line 2: expected two tokens with a space between them, found 'ab'"),
    "a merge of three": (lambda _: {"merges": "a b c\n"},
                         "merges.txt: line 1: expected two tokens with a space between them, found 'a b c'"),
    "a merge of strangers": (lambda _: {"merges": "a ÿzz\n"},
                             "merges.txt: line 1: expected two tokens of vocab.json that make a third, found 'a ÿzz': 2 missing"),
    "a decoder that is a list": (lambda _: {"options": '{"added_tokens_decoder": [1]}'},
                                 "tokenizer_config.json: added_tokens_decoder: expected an object, found list"),
    "a decoder of words": (decoder("x", content="<x>"), "added_tokens_decoder: expected token ids, found 'x'"),
    "no content": (decoder("325", special=True), "added_tokens_decoder: 325: expected an object with the token's content, found"),
    "a flag of text": (decoder("325", content="<x>", special="yes"), "325: special: expected true or false, found 'yes'"),
    "an added token's id is taken": (decoder("64", content="<x>"), "token '<x>': expected an id of its own, found 64, the id of 'a'"),
    "an added token's text is taken": (decoder("325", content="a"), "token 'a': expected the id 64, as stated before, found 325"),
    "another id in the other file": (lambda _: {"added": '{"<|mask|>": 3000}'},
                                     "added_tokens.json: token '<|mask|>': expected the id 324, as stated before, found 3000"),
    "another token in the other file": (lambda _: {"added": '{"<x>": 324}'},
                                        "added_tokens.json: token '<x>': expected an id of its own, found 324, the id of '<|mask|>'"),
    "an added id of text": (lambda _: {"added": '{"<x>": "7"}'},
                            "added_tokens.json: token '<x>': expected a whole number from 0, found '7'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_malformed_files(pair, tmp_path, case):
    change, message = WRONG[case]
    folder = copied(pair[1], tmp_path, **change(pair[1]))
    with pytest.raises(ModelFormatError, match=re.escape(message)) as caught:
        LLaDAForCausalLM(folder)
    assert str(folder) in str(caught.value)
