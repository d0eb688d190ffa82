"""Whatever a caller calls a prompt -> a list of token arrays."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .options import GenerationOptions
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
    items = [] if isinstance(prompts, list | tuple) and not prompts else _items(prompts)
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
    for i, (item, ids) in enumerate(zip(items, encoded, strict=True)):
        if len(ids) == 0 or (isinstance(item, str) and not item):  # of which a chat template makes a question all the same
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
        if any(isinstance(p, str) for p in prompts):
            i, odd = next((i, p) for i, p in enumerate(prompts) if not isinstance(p, str))
            raise TypeError(f"prompts[{i}]: expected text like the others, found {checks.cut(repr(odd))}")
    return id_rows(prompts, "prompts")


def as_array(value: Any, name: str) -> NDArray[Any]:
    """NumPy's view of whatever has numbers: lists, arrays, objects of the array API or DLPack, tensors in CPU memory.

    Raises
    ------
    TypeError
        It lives on another device, or is no array.
    """
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray | np.generic):
        try:
            return np.from_dlpack(value)
        except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as e:
            if not hasattr(value, "__array__"):
                raise TypeError(f"{name}: expected an array in CPU memory, found {type(value).__name__}: {e}") from e
    try:
        return np.asarray(value)
    except ValueError:
        raise
    except Exception as e:  # whatever a foreign array's __array__ raises, for instance because it lives on another device
        raise TypeError(f"{name}: expected an array in CPU memory, found {type(value).__name__}: {e}") from e


def as_arrays(values: Any, name: str) -> Any:
    """An array, or a list of arrays where a list was given."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{name}: expected numbers in one or two dimensions, found {type(values).__name__}")
    if not isinstance(values, Sequence) or isinstance(values, memoryview):
        return as_array(values, name)
    try:
        return [as_array(row, name) for row in values]
    except ValueError as e:  # NumPy: nested sequences of unequal lengths
        raise TypeError(f"{name}: expected numbers in one or two dimensions, found a ragged nest") from e


def id_rows(ids: Any, name: str) -> list[IntArray]:
    """One integer array a request, from one or two dimensions or a list of arrays of any lengths."""
    kinds = "whole numbers in one or two dimensions" if name == "attention_mask" else "token ids in one or two dimensions"
    if name == "prompts":
        kinds = f"text, messages or {kinds}"
    if isinstance(ids, str | bytes):
        raise TypeError(f"{name}: expected {kinds}, found {type(ids).__name__}")
    try:
        if isinstance(ids, Sequence) and not isinstance(ids, memoryview):
            rows: list[NDArray[Any]] = as_arrays(ids, name)
            if not any(row.ndim == 1 for row in rows):
                rows = [np.asarray(rows)]
        else:
            rows = [as_array(ids, name)]
    except ValueError as e:  # NumPy: nested sequences of unequal lengths
        raise TypeError(f"{name}: expected {kinds}, found a ragged nest") from e
    if len(rows) == 1 and rows[0].ndim == 2:
        rows = list(rows[0])
    for row in rows:
        if row.ndim != 1:
            raise TypeError(f"{name}: expected {kinds}, found {type(ids).__name__}")
        if row.dtype == bool and name == "attention_mask":
            continue
        if row.size and not np.issubdtype(row.dtype, np.integer):
            raise TypeError(f"{name}: expected {kinds}, found dtype {row.dtype}")
    return rows


def one_row(ids: Any, name: str) -> IntArray:
    """The one integer array of a sequence of token ids."""
    try:
        flat = as_array(ids, name).ndim == 1
    except ValueError:  # NumPy: nested sequences of unequal lengths
        flat = False
    if not flat:
        raise TypeError(f"{name}: expected token ids in one dimension, found {ids!r}")
    row: IntArray
    [row] = id_rows(ids, name)
    return row


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
    return [np.array(r, np.int32, order="C") for r in rows]  # the caller may change theirs before a stream or a task begins


def _encode_text(item: Any, chat: bool | str, tokenizer: Tokenizer) -> IntArray:
    if isinstance(item, str):
        if chat is False or (chat == "auto" and tokenizer.chat_template is None):
            return np.array(tokenizer.encode(item), np.int32)
        item = [{"role": "user", "content": item}]
    return np.array(tokenizer.encode_chat(item), np.int32)


def fixed_answers(constraints: Any, prompts: int, options: GenerationOptions, tokenizer: Tokenizer | None,
                  vocabulary: int) -> list[IntArray]:
    """The canvas of every prompt: masks, and the words that `constraints` fixes.

    Raises
    ------
    TypeError, ValueError
        Not {position: text, id or ids}, words that leave the canvas or overlap, or a number of dicts other than that of prompts.
    """
    if constraints is None or isinstance(constraints, Mapping):
        constraints = [constraints or {}] * prompts
    if not isinstance(constraints, Sequence) or not all(isinstance(c, Mapping) for c in constraints):
        raise TypeError(f"constraints: expected {{position: text or token ids}}, or a list of those, found {constraints!r}")
    if len(constraints) != prompts:
        raise ValueError(f"constraints: expected one for each of {prompts} prompts, found {len(constraints)}")
    answers = []
    for fixed in constraints:
        answer = np.full(options.gen_length, options.mask_id, np.int32)
        for position, words in fixed.items():
            name = f"constraints[{position!r}]"
            begin = checks.whole_number("constraints: position", position, 0, options.gen_length - 1)
            ids = _word_ids(words, name, tokenizer, vocabulary)
            if options.mask_id in ids:
                raise ValueError(f"{name}: expected fixed tokens, found the mask token")
            if begin + len(ids) > options.gen_length:
                raise ValueError(f"{name}: expected at most {options.gen_length - begin} tokens up to the canvas's end, found {len(ids)}")
            if (answer[begin:begin + len(ids)] != options.mask_id).any():
                raise ValueError(f"{name}: overlaps another constraint")
            answer[begin:begin + len(ids)] = ids
        if options.mask_id not in answer:
            raise ValueError("constraints: expected to leave a mask to fill, found the whole canvas fixed")
        answers.append(answer)
    return answers


def infill_texts(texts: Any, mask_id: int, tokenizer: Tokenizer | None, vocabulary: int) -> list[IntArray]:
    """Texts with mask tokens where something is to be filled in.

    Raises
    ------
    TypeError, ValueError
        Not parts or ids, or no mask among them.
    """
    if isinstance(texts, str):
        raise TypeError("texts: expected parts like ['The capital is ', 1, '.'], where a number stands for masks; found one text")
    items: list[Any]
    if isinstance(texts, list | tuple) and not texts:
        items = []
    elif isinstance(texts, Sequence) and any(isinstance(part, str) for part in texts):
        items = [texts]
    elif isinstance(texts, Sequence) and any(isinstance(part, Sequence) and any(isinstance(p, str) for p in part) for part in texts):
        items = [text if isinstance(text, Sequence) and any(isinstance(p, str) for p in text) else one_row(text, f"texts[{i}]")
                 for i, text in enumerate(texts)]
    else:
        items = id_rows(texts, "texts")
    answers = []
    for i, item in enumerate(items):
        if isinstance(item, np.ndarray):
            ids = token_rows([item], None, vocabulary, "texts")[0]
        else:
            pieces: list[Any] = []
            for j, part in enumerate(item):
                name = f"texts[{i}][{j}]"
                pieces.append(_word_ids(part, name, tokenizer, vocabulary) if isinstance(part, str) else
                              np.full(checks.whole_number(name, part), mask_id, np.int32))
            ids = np.concatenate(pieces)
        if mask_id not in ids:
            raise ValueError(f"texts[{i}]: expected a mask to fill, found none; a number between texts is so many, as in "
                             "['The capital is ', 1, '.']")
        answers.append(ids)
    if not answers:
        raise ValueError("texts: expected at least one, found none")
    return answers


def encode_continuations(answers: Any, tokenizer: Tokenizer | None, vocabulary: int) -> list[IntArray]:
    """Token ids of answers to be scored: text as it stands, or integers."""
    if isinstance(answers, str):
        answers = [answers]
    if isinstance(answers, Sequence) and len(answers) and all(isinstance(a, str) for a in answers):
        return [_word_ids(text, f"answers[{i}]", tokenizer, vocabulary) for i, text in enumerate(answers)]
    rows = token_rows(id_rows(answers, "answers"), None, vocabulary, "answers")
    if not rows or any(len(row) == 0 for row in rows):
        raise ValueError("answers: expected at least one token in each, found none")
    return rows


def _word_ids(words: Any, name: str, tokenizer: Tokenizer | None, vocabulary: int) -> IntArray:
    """Ids of a text, of one token or of several."""
    if isinstance(words, str):
        if tokenizer is None:
            raise ValueError(f"{name}: text needs a tokenizer, and this model has none (no tokenizer.json): pass token ids")
        ids = np.array(tokenizer.encode(words), np.int32)
    elif isinstance(words, int | np.integer):
        ids = np.array([checks.token_id(name, words, vocabulary)], np.int32)
    else:
        ids = token_rows([one_row(words, name)], None, vocabulary, name)[0]
    if len(ids) == 0:
        raise ValueError(f"{name}: expected at least one token, found none")
    return ids
