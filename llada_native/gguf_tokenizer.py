"""The tokenizer in a GGUF file's metadata -> the files that a Hugging Face folder has for it.

A file names its way of splitting text into words and leaves the pattern to the program.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .byte_level import PATTERNS, added_token, tokenizer_json
from .errors import ModelFormatError, UnsupportedModelError
from .gguf_file import shown

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
        return {"tokenizer.json": self.tokenizer(tokens, PATTERNS[pre]),
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

    def tokenizer(self, tokens: list[str], pattern: str) -> str:
        """tokenizer.json: byte-level BPE; control tokens are special, rows without a token have none."""
        types = self.metadata.get("tokenizer.ggml.token_type", np.full(len(tokens), NORMAL))
        if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(tokens):
            raise self.wrong("token_type", f"{len(tokens)} whole numbers", types)
        if not np.isin(types, (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED)).all():
            raise self.wrong("token_type", f"numbers from {NORMAL} to {UNUSED}", int(types[~np.isin(types, range(1, 6))][0]))
        added = [added_token(i, tokens[i], bool(types[i] == CONTROL))
                 for i in np.flatnonzero(np.isin(types, (CONTROL, USER_DEFINED))).tolist()]
        vocabulary = {tokens[i]: i for i in np.flatnonzero(np.isin(types, (NORMAL, UNKNOWN))).tolist()}
        merges = []
        for merge in self.texts("merges"):
            left, space, right = merge.partition(" ")
            if not (left and space and right):
                raise self.wrong("merges", "two tokens with a space between them", merge)
            merges.append([left, right])
        return tokenizer_json(vocabulary, merges, added, pattern)

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
