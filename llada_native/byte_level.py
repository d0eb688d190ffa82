"""tokenizer.json of byte-level BPE, for checkpoints that state a vocabulary and its merges in another way.

The patterns that split text into words are those of the models' own tokenizers, which compose it (NFC) before: llama.cpp's are greedy
where these are possessive, and it does not compose.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LLADA = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PATTERNS = {"llada": LLADA, "llada-moe": LLADA, "bailingmoe": LLADA, "bailingmoe2": LLADA, "qwen2": QWEN2}


def added_token(number: int, content: str, special: bool, **flags: bool) -> dict[str, Any]:
    """A token that is looked for before text is split into words; a special one is none of the text."""
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special, **flags}


def tokenizer_json(vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]], added: Sequence[Mapping[str, Any]], pattern: str) -> str:
    """The file's text. Added tokens are in the vocabulary too: the library counts on from its size for those that are not."""
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {**vocabulary, **{token["content"]: token["id"] for token in added}}, "merges": list(merges)}},
        ensure_ascii=False)
