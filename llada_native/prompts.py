"""Whatever a caller calls a prompt -> a list of token arrays."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .result import IntArray
from .tokenizer import Tokenizer


def encode_prompts(prompts: Any, attention_mask: Any, chat: bool | str, tokenizer: Tokenizer | None, vocabulary: int) -> list[IntArray]:
    """Token ids of every prompt.

    Parameters
    ----------
    prompts : str, list of str, chat messages, list of chat messages, or integers
        Integers are one prompt in one dimension, several in two or as a list of arrays.
    attention_mask : array or None
        For a two-dimensional array of ids: 0 drops a position, on whichever side it is.
    chat : "auto", True or False
        Whether text is put into the chat template as a user's turn; "auto" does so when there is a template.

    Raises
    ------
    TypeError
        Not a prompt.
    ValueError
        An empty prompt, ids outside the vocabulary, a mask that does not fit, or text where there is no tokenizer.
    """
    if not (isinstance(chat, bool) or (isinstance(chat, str) and chat == "auto")):
        raise (ValueError if isinstance(chat, str) else TypeError)(f"chat: expected 'auto', True or False, found {chat!r}")
    items = _items(prompts)
    if not items:
        raise ValueError("prompts: expected at least one, found none")
    if any(isinstance(item, str | list) for item in items):
        if attention_mask is not None:
            raise ValueError("attention_mask: expected only with integer prompts")
        if tokenizer is None:
            raise ValueError("prompts: text needs a tokenizer, and this model has none (no tokenizer.json): pass token ids")
        encoded = [_encode_text(item, chat, tokenizer) for item in items]
    else:
        encoded = token_rows(items, attention_mask, vocabulary)
    for i, ids in enumerate(encoded):
        if len(ids) == 0:
            raise ValueError(f"prompts[{i}]: expected at least one token, found none")
    return encoded


def _items(prompts: Any) -> list[Any]:
    """One entry a prompt: str, list of messages, or integer array."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping):
        raise TypeError("prompts: expected a list of messages, found a single message")
    if isinstance(prompts, Sequence) and len(prompts):
        if all(isinstance(p, str) for p in prompts):
            return list(prompts)
        if all(isinstance(p, Mapping) for p in prompts):
            return [list(prompts)]
        if all(isinstance(p, Sequence) and len(p) and all(isinstance(m, Mapping) for m in p) for p in prompts):
            return [list(p) for p in prompts]
    return id_rows(prompts, "prompts")


def id_rows(ids: Any, name: str) -> list[IntArray]:
    """One integer array a request, from one or two dimensions or a list of arrays of any lengths."""
    kinds = "whole numbers in one or two dimensions" if name == "attention_mask" else "token ids in one or two dimensions"
    if name == "prompts":
        kinds = f"text, messages or {kinds}"
    try:
        ragged = isinstance(ids, Sequence) and not isinstance(ids, str | bytes) and any(np.ndim(row) == 1 for row in ids)
        rows = [np.asarray(row) for row in ids] if ragged else [np.asarray(ids)]
    except ValueError as e:  # NumPy: nested sequences of unequal lengths
        raise TypeError(f"{name}: expected {kinds}, found a ragged nest") from e
    if not ragged and rows[0].ndim == 2:
        rows = list(rows[0])
    for row in rows:
        if row.ndim != 1:
            raise TypeError(f"{name}: expected {kinds}, found {type(ids).__name__}")
        if row.dtype == bool and name == "attention_mask":
            continue
        if row.size and not np.issubdtype(row.dtype, np.integer):
            raise TypeError(f"{name}: expected {kinds}, found dtype {row.dtype}")
    return rows


def token_rows(rows: list[Any], attention_mask: Any, vocabulary: int, name: str = "prompts") -> list[IntArray]:
    """Checked int32 rows without the positions that the mask drops."""
    if attention_mask is not None:
        mask = id_rows(attention_mask, "attention_mask")
        shapes = [len(r) for r in rows], [len(m) for m in mask]
        if shapes[0] != shapes[1]:
            raise ValueError(f"attention_mask: expected rows of {shapes[0]} entries, found {shapes[1]}")
        for m in mask:
            if not np.isin(m, (0, 1)).all():
                raise ValueError("attention_mask: expected only 0 and 1")
        for i, m in enumerate(mask):
            if not m.any():
                raise ValueError(f"attention_mask: expected a 1 in every row, found none for {name}[{i}]")
        rows = [r[m.astype(bool)] for r, m in zip(rows, mask, strict=True)]
    for i, row in enumerate(rows):
        wrong = row[(row < 0) | (row >= vocabulary)]
        if wrong.size:
            raise ValueError(f"{name}[{i}]: expected token ids from 0 to {vocabulary - 1}, found {wrong[0]}")
    return [np.ascontiguousarray(r, np.int32) for r in rows]


def _encode_text(item: Any, chat: bool | str, tokenizer: Tokenizer) -> IntArray:
    if isinstance(item, str):
        if chat is False or (chat == "auto" and tokenizer.chat_template is None):
            return np.array(tokenizer.encode(item), np.int32)
        item = [{"role": "user", "content": item}]
    return np.array(tokenizer.encode_chat(item), np.int32)
