"""Text <-> token ids through the `tokenizers` library; conversations through the chat template of a checkpoint."""
from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

from .checkpoint import read_json, refuse_stand_in
from .errors import ModelFormatError

if TYPE_CHECKING:
    import tokenizers

    from .chat_template import ChatTemplate

logger = logging.getLogger("llada_native")

Message = Mapping[str, str]

# Stands for a special token's text inside user content while the template is rendered. From a private-use area: cannot be typed by
# accident, and special tokens never contain it.
SHIELD = "\U000f1ada{}\U000f1adb"
HALF_A_CHARACTER = "\ufffd"  # what bytes decode to that are no character yet


class Tokenizer:
    """The tokenizer of a checkpoint folder, or of a file that holds one.

    Parameters
    ----------
    folder : path
        Holds tokenizer.json and, optionally, tokenizer_config.json and chat_template.jinja.
    texts : dict, optional
        The first two of these by their names, where `folder`, which may be a file, says the same in another way.

    Raises
    ------
    ModelFormatError
        A file is malformed.
    """

    def __init__(self, folder: str | Path, texts: Mapping[str, str] | None = None) -> None:
        texts = texts or {}
        self.folder = Path(folder)
        self.path = self.folder if "tokenizer.json" in texts else self.folder / "tokenizer.json"
        data = texts["tokenizer.json"].encode() if "tokenizer.json" in texts else read_file(self.path)
        options = (json.loads(texts["tokenizer_config.json"]) if "tokenizer_config.json" in texts else
                   tokenizer_options(self.folder))
        self.chat_template = _chat_template(self.folder, options)
        self._token_texts = {key: text for key, value in options.items() if key.endswith("_token") and (text := _token_text(value))}
        self.eos_token = self._token_texts.get("eos_token")
        added = _stated_tokens(options)
        self._tokenizer = _load(self.path, data, added)
        # A second tokenizer that reads special tokens as text; a flag switched on a shared one would race between threads.
        self._plain = _load(self.path, data, added)
        self._plain.encode_special_tokens = True
        specials = sorted((t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.special), key=len,
                          reverse=True)
        self._shielded = [*SHIELD.split("{}"), *specials]  # what a message must not be able to say: the shield's own marks too

    @property
    def largest_id(self) -> int:
        """The largest token id, -1 for an empty vocabulary."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def token_id(self, token: str) -> int | None:
        """The id of one token by its text, or None."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Special tokens in it are recognised; none is added.

        Raises
        ------
        TypeError, ValueError
            No text, or one with half of a surrogate pair, which is no character.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a text, found {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise ValueError(f"text: expected characters, found half of a surrogate pair, {text[e.start]!r}, at {e.start}") from None
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[SupportsInt], skip_special_tokens: bool = True) -> str:
        """The text of token ids; those that the vocabulary lacks have none.

        Raises
        ------
        TypeError
            A text instead of ids.
        """
        if isinstance(ids, str | bytes):
            raise TypeError(f"ids: expected token ids, found {ids!r}")
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, ready for the assistant's answer.

        Text of special tokens inside a message is encoded as ordinary text: a user cannot end a turn by typing its token.

        Raises
        ------
        ValueError
            There is no chat template, a message is malformed, or the template refuses the conversation.
        """
        if self.chat_template is None:
            raise ValueError(f"{self.folder}: no chat template: pass chat=False for plain text")
        shielded: list[dict[str, Any]] = []
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise ValueError(f"messages[{i}]: expected {{'role': str, 'content': str}}, found {message!r}")
            shielded.append(self._shield(message))
        return self._encode_shielded(self._template.render(shielded))

    @cached_property
    def _template(self) -> ChatTemplate:
        """Compiled once: that takes longer than an answer of the demo model."""
        from .chat_template import ChatTemplate

        return ChatTemplate(self.chat_template or "", self._token_texts, str(self.folder))

    def _shield(self, part: Any) -> Any:
        """A message, or a part of one, with shields in the place of special tokens' texts."""
        if isinstance(part, Mapping):
            return {self._shield(key): self._shield(value) for key, value in part.items()}
        if isinstance(part, list | tuple):
            return [self._shield(item) for item in part]
        if not isinstance(part, str):
            return part
        pattern = "|".join(map(re.escape, self._shielded))
        return re.sub(pattern, lambda found: SHIELD.format(self._shielded.index(found[0])), part)

    def _encode_shielded(self, text: str) -> list[int]:
        start, end = SHIELD.split("{}")
        for mark in (start, end):  # as JSON in ASCII has it
            text = text.replace(json.dumps(mark)[1:-1], mark)
        first, *rest = text.split(start)
        ids = self.encode(first)
        for part in rest:
            number, whole, after = part.partition(end)
            if not whole or not number.isdecimal() or int(number) >= len(self._shielded):
                raise ValueError(f"{self.folder}: the chat template failed: it cuts a message apart where a special token's text stands")
            ids += self._plain.encode(self._shielded[int(number)], add_special_tokens=False).ids
            ids += self.encode(after)
        return ids


def tokenizer_options(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, or nothing."""
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def stated_token(folder: Path, name: str) -> str | None:
    """The text of a token from tokenizer_config.json alone, for folders without tokenizer.json."""
    return _token_text(tokenizer_options(folder).get(name))


def special_token_id(folder: Path, token: str) -> int | None:
    """The id of a special token, likewise."""
    return next((number for number, entry in _stated_tokens(tokenizer_options(folder)) if entry["content"] == token), None)


def _stated_tokens(options: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Ids and descriptions of the added tokens in a tokenizer_config.json, ascending."""
    decoder = options.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        return []
    found = {int(number): entry for number, entry in decoder.items()
             if number.isdecimal() and len(number) < 10 and isinstance(entry, dict) and isinstance(entry.get("content"), str)}
    return sorted(found.items())


def read_file(path: Path) -> bytes:
    """Its bytes, unless a download that went wrong left them."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ModelFormatError(f"{path}: cannot be read: {e.strerror}") from e
    refuse_stand_in(path, data[:256])
    return data


def _load(path: Path, data: bytes, added: Sequence[tuple[int, Mapping[str, Any]]]) -> tokenizers.Tokenizer:
    """The tokenizer of a file, and what tokenizer_config.json adds to it."""
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as e:  # the library raises bare Exception
        raise ModelFormatError(f"{path}: not a valid tokenizer: {e}") from e
    # Settings of whoever saved it, which would cut and fill every prompt.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    has = tokenizer.get_added_tokens_decoder()
    for number, entry in added:
        text, special = entry["content"], bool(entry.get("special"))
        there = tokenizer.token_to_id(text)
        if there is None and number != tokenizer.get_vocab_size(with_added_tokens=True):
            logger.warning("%s: token %r of tokenizer_config.json is left out: its id would be %d, not %d", path, text,
                           tokenizer.get_vocab_size(with_added_tokens=True), number)
        elif there not in has or (special and not has[there].special):  # what tokenizer.json calls special stays so
            flags = {name: bool(entry.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([tokenizers.AddedToken(text, **flags)])
    return tokenizer


def _chat_template(folder: Path, options: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ModelFormatError(f"{path}: cannot be read: {e}") from e
    template = options.get("chat_template")
    if isinstance(template, list):  # several templates by name
        template = next((t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise ModelFormatError(f"{folder / 'tokenizer_config.json'}: chat_template: expected text, found {type(template).__name__}")
    return template


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
