"""The tokenizer in a GGUF file's metadata -> the files that a Hugging Face folder has for it.

A file names its way of splitting text into words and leaves the pattern to the program. The patterns are those of the models' own
tokenizers, normalised to NFC as these do: llama.cpp's are greedy where these are possessive, and it does not normalise.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ModelFormatError, UnsupportedModelError
from .gguf_file import shown

LLADA = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PATTERNS = {"llada": LLADA, "llada-moe": LLADA, "bailingmoe": LLADA, "bailingmoe2": LLADA, "qwen2": QWEN2}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
NONE = ("none", "no_vocab")
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "mask_token": "mask"}


def tokenizer_files(path: Path, metadata: dict[str, Any]) -> dict[str, str] | None:
    """Texts of tokenizer.json and tokenizer_config.json by their names; None when the file has no tokenizer.

    Raises
    ------
    ModelFormatError
        A key is missing or malformed.
    UnsupportedModelError
        Another kind of tokenizer, or another way to split words.
    """
    model = metadata.get("tokenizer.ggml.model", NONE[0])
    if isinstance(model, str) and model in NONE:
        return None
    return _Reader(path, metadata).files()


class _Reader:
    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path, self.metadata = path, metadata

    def files(self) -> dict[str, str]:
        model, pre = self.text("model"), self.text("pre")
        for key, found, known in (("model", model, ["gpt2"]), ("pre", pre, list(PATTERNS))):
            if found not in known:
                raise UnsupportedModelError(f"{self.path}: tokenizer.ggml.{key} = {shown(found)} is not supported: expected one of "
                                            + ", ".join(map(repr, known)))
        tokens = self.tokens()
        options: dict[str, Any] = {"add_bos_token": False, "add_eos_token": False}  # the chat template has them
        for name, key in SPECIAL.items():
            number = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
            if number is not None:
                if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(tokens):
                    raise self.wrong(f"{key}_token_id", f"a token id from 0 to {len(tokens) - 1}", number)
                options[name] = tokens[number]
        template = self.metadata.get("tokenizer.chat_template")
        if template is not None:
            if not isinstance(template, str):
                raise ModelFormatError(f"{self.path}: tokenizer.chat_template: expected text, found {type(template).__name__}")
            options["chat_template"] = template
        return {"tokenizer.json": json.dumps(self.tokenizer(tokens, PATTERNS[pre]), ensure_ascii=False),
                "tokenizer_config.json": json.dumps(options, ensure_ascii=False, indent=2)}

    def tokens(self) -> list[str]:
        tokens = self.texts("tokens")
        if len(set(tokens)) != len(tokens):
            seen: set[str] = set()
            for token in tokens:
                if token in seen:
                    raise self.wrong("tokens", "none twice", token)
                seen.add(token)
        return tokens

    def tokenizer(self, tokens: list[str], pattern: str) -> dict[str, Any]:
        """tokenizer.json: byte-level BPE; control tokens are special, rows without a token have none."""
        types = self.metadata.get("tokenizer.ggml.token_type", np.full(len(tokens), NORMAL))
        if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(tokens):
            raise self.wrong("token_type", f"{len(tokens)} whole numbers", types)
        if not np.isin(types, (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED)).all():
            raise self.wrong("token_type", f"numbers from {NORMAL} to {UNUSED}", int(types[~np.isin(types, range(1, 6))][0]))
        added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                  "special": bool(types[i] == CONTROL)} for i in np.flatnonzero(np.isin(types, (CONTROL, USER_DEFINED))).tolist()]
        vocabulary = {tokens[i]: i for i in np.flatnonzero(np.isin(types, (NORMAL, UNKNOWN))).tolist()}
        merges = []
        for merge in self.texts("merges"):
            left, space, right = merge.partition(" ")
            if not (left and space and right):
                raise self.wrong("merges", "two tokens with a space between them", merge)
            merges.append([left, right])
        return {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": merges}}

    def text(self, key: str) -> str:
        value = self.required(key)
        if not isinstance(value, str):
            raise self.wrong(key, "text", value)
        return value

    def texts(self, key: str) -> list[str]:
        value = self.required(key)
        if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise self.wrong(key, "a list of texts", value)
        return value

    def required(self, key: str) -> Any:
        name = f"tokenizer.ggml.{key}"
        if name not in self.metadata:
            raise ModelFormatError(f"{self.path}: required key {name!r} is missing")
        return self.metadata[name]

    def wrong(self, key: str, expected: str, found: object) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: tokenizer.ggml.{key}: expected {expected}, found {shown(found)}")
