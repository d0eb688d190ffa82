"""Text <-> token ids through the `tokenizers` library, and the chat template of a checkpoint, rendered in a sandbox."""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

from .checkpoint import read_json, refuse_stand_in
from .errors import ModelFormatError

if TYPE_CHECKING:
    import tokenizers
    from jinja2 import Template

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
        The first two of these by their names, when `folder` is a file that says the same in another way.

    Raises
    ------
    ModelFormatError
        A file is malformed.
    """

    def __init__(self, folder: str | Path, texts: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "tokenizer.json" if texts is None else self.folder
        data = _read(self.path) if texts is None else texts["tokenizer.json"].encode()
        self._tokenizer = _load(self.path, data)
        options = tokenizer_options(self.folder) if texts is None else json.loads(texts["tokenizer_config.json"])
        self.chat_template = _chat_template(self.folder, options)
        self._template_tokens = {k: text for k in ("bos_token", "eos_token", "pad_token", "mask_token", "unk_token")
                                 if (text := _token_text(options.get(k)))}
        # A second tokenizer that reads special tokens as text; a flag switched on a shared one would race between threads.
        self._plain = _load(self.path, data)
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
        """Ids of a text. Special tokens in it are recognised; none is added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[SupportsInt], skip_special_tokens: bool = True) -> str:
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
        shielded = []
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise ValueError(f"messages[{i}]: expected {{'role': str, 'content': str}}, found {message!r}")
            shielded.append({**message, "content": self._shield(message["content"])})
        return self._encode_shielded(self._render(shielded))

    def _render(self, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._template_tokens)
        except (TemplateError, TypeError, OverflowError) as e:
            raise ValueError(f"{self.folder}: the chat template failed: {e}") from e

    @cached_property
    def _template(self) -> Template:
        """Compiled once: that takes longer than an answer of the demo model."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = raise_exception
        return environment.from_string(self.chat_template or "")

    def _shield(self, content: str) -> str:
        pattern = "|".join(map(re.escape, self._shielded))
        return re.sub(pattern, lambda found: SHIELD.format(self._shielded.index(found[0])), content)

    def _encode_shielded(self, text: str) -> list[int]:
        start, end = SHIELD.split("{}")
        first, *rest = text.split(start)
        ids = self.encode(first)
        for part in rest:
            number, _, after = part.partition(end)
            ids += self._plain.encode(self._shielded[int(number)], add_special_tokens=False).ids
            ids += self.encode(after)
        return ids


def tokenizer_options(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, or nothing."""
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def special_token_id(folder: Path, token: str) -> int | None:
    """The id of a special token from tokenizer_config.json alone, for folders without tokenizer.json."""
    decoder = tokenizer_options(folder).get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and entry.get("content") == token and number.isdecimal():
            return int(number)
    return None


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ModelFormatError(f"{path}: cannot be read: {e.strerror}") from e
    refuse_stand_in(path, data[:256])
    return data


def _load(path: Path, data: bytes) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except Exception as e:  # the library raises bare Exception
        raise ModelFormatError(f"{path}: not a valid tokenizer: {e}") from e


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
