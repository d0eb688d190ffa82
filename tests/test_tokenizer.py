"""Tokenizers and chat templates as the folders of checkpoints have them."""
import json

import folders
import numpy as np
import pytest

from llada_native import LLaDAForCausalLM
from llada_native.tokenizer import Tokenizer

SPECIAL = ("<|endoftext|>", "<|eot_id|>", "<|mdm_mask|>")
PLAIN = "{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}"


def write(folder, template=PLAIN, special=SPECIAL, change=lambda tokenizer: None, **options):
    """A tokenizer of bytes."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Library(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    change(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[0], "chat_template": template, **options}))
    return Tokenizer(folder)


def rendered(tokenizer, content="é<b", role="user"):
    return tokenizer.decode(tokenizer.encode_chat([{"role": role, "content": content}]), skip_special_tokens=False)


@pytest.mark.parametrize(("template", "text"), [
    ("{% if tools is not none %}tools{% endif %}{% if documents is not none %}documents{% endif %}{{ messages[0].content }}", "é<b"),
    ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{% if i == 0 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "1"),
    ("{{ 1 }}{% generation %}{{ messages[0].content }}{% endgeneration %}{{ 2 }}", "1é<b2"),
    ("{{ messages[0] | tojson }}", '{"role": "user", "content": "é<b"}'),
    ("{{ strftime_now('%%') }}", "%"),
    ("{{ cls_token }}{{ eos_token }}", "[C]<|endoftext|>"),
    ("{{ messages[0].content }}   \n  {% if true %}\n!{% endif %}", "é<b   \n!"),
])
def test_templates_have_what_transformers_gives_them(tmp_path, template, text):
    assert rendered(write(tmp_path, template, cls_token={"content": "[C]"})) == text


@pytest.mark.parametrize("template", [
    "{{ 1/0 }}", "{{ '{}'.format() }}", "{{ [1].index(4) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 'a' * 100000000000 }}",
    "{% if %}", "{{ raise_exception('no') }}", "{% include 'x' %}", "{{ messages[0].content[:2] }}"])
def test_templates_that_fail_say_so(tmp_path, template):
    tokenizer = write(tmp_path, template)
    with pytest.raises(ValueError, match="the chat template failed: ") as failed:
        rendered(tokenizer, "<|eot_id|><|eot_id|>")
    assert str(failed.value).startswith(str(tmp_path))


def test_no_part_of_a_message_is_a_special_token(tmp_path):
    tokenizer = write(tmp_path, PLAIN + "{{ messages[0].name }}<|eot_id|>")
    ids = tokenizer.encode_chat([{"role": "user<|eot_id|>", "content": "<|mdm_mask|>\U000f1ada0\U000f1adb", "name": "<|endoftext|>"}])
    assert [i for i in ids if i >= 256] == [257]  # the template's own
    assert tokenizer.decode(ids, skip_special_tokens=False) == "user<|eot_id|>:<|mdm_mask|>\U000f1ada0\U000f1adb<|endoftext|><|eot_id|>"


@pytest.mark.parametrize("template", ["{{ messages[0] | tojson }}", "{{ messages[0] | tojson(ensure_ascii=True) }}"])
def test_no_part_of_a_part_is_one_either(tmp_path, template):
    tokenizer = write(tmp_path, template)
    message = {"role": "user", "content": "a", "tool": ["<|eot_id|>", {"<|mdm_mask|>": ("<|endoftext|>", 1)}]}
    ids = tokenizer.encode_chat([message])
    assert not [i for i in ids if i >= 256] and json.loads(tokenizer.decode(ids)) == json.loads(json.dumps(message))


def test_half_of_a_surrogate_pair_is_no_text(tmp_path):
    tokenizer = write(tmp_path)
    for encode in (tokenizer.encode, lambda text: rendered(tokenizer, text)):
        with pytest.raises(ValueError, match=r"text: expected characters, found half of a surrogate pair, '\\ud800', at \d"):
            encode("a\ud800")


def test_what_a_tokenizer_was_saved_with_is_left(tmp_path):
    def cut_and_fill(tokenizer):
        tokenizer.enable_truncation(max_length=8)
        tokenizer.enable_padding(length=16, pad_id=3, pad_token="!")

    tokenizer = write(tmp_path, change=cut_and_fill)
    text = "a text of more than eight bytes"
    assert len(tokenizer.encode(text)) == len(text) and len(tokenizer.encode("a")) == 1


def test_tokens_that_only_the_options_state(tmp_path):
    stated = {"256": "<|endoftext|>", "257": "<|eot_id|>", "258": "<tool>"}
    options = {number: {"content": text, "special": text != "<tool>"} for number, text in stated.items()}
    tokenizer = write(tmp_path, special=SPECIAL[:1], added_tokens_decoder=options)
    assert [tokenizer.token_id(text) for text in stated.values()] == [256, 257, 258] and tokenizer.largest_id == 258
    assert tokenizer.encode("a<|eot_id|><tool>") == [*tokenizer.encode("a"), 257, 258]
    assert tokenizer.decode([257, 258]) == "<tool>"
    assert 257 not in tokenizer.encode_chat([{"role": "user", "content": "<|eot_id|>"}])


def test_tokens_that_cannot_have_their_id_are_left_out(tmp_path, caplog):
    stated = {"300": {"content": "<|eot_id|>", "special": True}, "7" * 5000: {"content": "<x>"}, "301": {"content": "<|endoftext|>"}}
    tokenizer = write(tmp_path, special=SPECIAL[:1], added_tokens_decoder=stated)
    assert tokenizer.token_id("<|eot_id|>") is None and tokenizer.token_id("<|endoftext|>") == 256
    assert "token '<|eot_id|>' of tokenizer_config.json is left out: its id would be 257, not 300" in caplog.text


def test_special_tokens_stay_special(tmp_path):
    """Whatever an entry of the options leaves out."""
    tokenizer = write(tmp_path, added_tokens_decoder={"257": {"content": "<|eot_id|>"}})
    assert tokenizer.decode([257]) == "" and 257 not in tokenizer.encode_chat([{"role": "user", "content": "<|eot_id|>"}])


def test_words_that_the_options_call_tokens(tmp_path):
    """One of the vocabulary, and one that tokenizer.json adds as an ordinary one."""
    def add(tokenizer):
        tokenizer.add_tokens(["<|eot_id|>"])

    stated = {"257": {"content": "<|eot_id|>", "special": True}, "33": {"content": "B", "special": True}}
    tokenizer = write(tmp_path, special=SPECIAL[:1], change=add, added_tokens_decoder=stated)
    assert tokenizer.encode("aB<|eot_id|>")[1:] == [33, 257] and tokenizer.decode([33, 257]) == ""
    assert 257 not in tokenizer.encode_chat([{"role": "user", "content": "<|eot_id|>"}])


def test_the_end_token_of_a_tokenizer(tmp_path):
    """Where config.json names none."""
    config = folders.config(vocab_size=300, embedding_size=320, eos_token_id=None, eot_token_id=None)
    folder = folders.write(tmp_path, config, folders.tensors(config))
    write(folder)
    model = LLaDAForCausalLM(folder)
    assert model.options().eos_id == 256 and model.options().eot_id == 257
    (folder / "tokenizer.json").unlink()
    options = {"eos_token": {"content": "<|endoftext|>"}, "added_tokens_decoder": {"57": {"content": "<|endoftext|>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    assert LLaDAForCausalLM(folder).options().eos_id == 57
    (folder / "tokenizer_config.json").unlink()
    assert LLaDAForCausalLM(folder).options().eos_id is None


def test_one_float32_norm_beside_bfloat16_matrices(tmp_path):
    config = folders.config()
    tensors = {name: t.astype("float32") for name, t in folders.tensors(config).items()}
    folder = folders.write(tmp_path, config, tensors, "bfloat16")
    from safetensors.numpy import load_file, save_file

    stored = load_file(folder / "model.safetensors")
    assert LLaDAForCausalLM(folder).dtype == "bfloat16"
    stored["model.transformer.ln_f.weight"] = stored["model.transformer.ln_f.weight"].astype(np.float32)
    save_file(stored, folder / "model.safetensors")
    assert LLaDAForCausalLM(folder).dtype == "bfloat16"
