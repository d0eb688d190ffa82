"""The chat template of a checkpoint: Jinja from a stranger, rendered in a sandbox, with what Hugging Face transformers gives it."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

T = TypeVar("T")


class ChatTemplate:
    """A template, compiled.

    Parameters
    ----------
    text : str
        Jinja.
    tokens : dict
        Texts of special tokens by the names under which the template knows them, like "bos_token".
    source : str
        Where it is from, for messages.

    Raises
    ------
    ValueError
        It is not Jinja.
    """

    def __init__(self, text: str, tokens: Mapping[str, str], source: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                    extensions=[_Generation, "jinja2.ext.loopcontrols"])
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.filters["tojson"] = _tojson
        self._tokens, self._source = dict(tokens), source
        self._template = self._failing_plainly(lambda: environment.from_string(text))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation, up to where the assistant's answer begins.

        Raises
        ------
        ValueError
            The template refuses the conversation, or fails in one of the many ways that a program can.
        """
        return self._failing_plainly(lambda: self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._tokens))

    def _failing_plainly(self, run: Callable[[], T]) -> T:
        try:
            return run()
        except Exception as e:  # of a program that is not ours
            raise ValueError(f"{self._source}: the chat template failed: {str(e) or type(e).__name__}") from e


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what an assistant says, for training; the text is what stands between."""

    tags = {"generation"}  # noqa: RUF012  (the base class has it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
            sort_keys: bool = False) -> str:
    """Plain JSON: Jinja's own filter escapes what is markup in a web page."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
