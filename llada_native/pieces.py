"""What tokens say, one by one and, where a character takes several of them, together."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .result import IntArray
from .tokenizer import HALF_A_CHARACTER, Tokenizer

LONGEST = 16  # tokens that are looked at together: an emoji of several code points, in bytes


@dataclass(frozen=True)
class Pieces:
    """Texts of tokens.

    Attributes
    ----------
    texts : dict of int to str
    special : set of int
        Those of them that are no text, like an end token.
    joined : dict of tuple of int to str
        Neighbours that make a character only together.
    """

    texts: dict[int, str] = field(default_factory=dict)
    special: frozenset[int] = frozenset()
    joined: dict[tuple[int, ...], str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Tokenizer, tokens: Iterable[int], canvases: Iterable[IntArray]) -> Pieces:
        """Those of some tokens, and of neighbours in some canvases."""
        texts = {t: tokenizer.decode([t], skip_special_tokens=False) for t in tokens}
        special = frozenset(t for t, text in texts.items() if text and not tokenizer.decode([t]))
        joined = {}
        for ids in (canvas.tolist() for canvas in canvases):
            begin = 0
            while begin < len(ids):
                count = _together(tokenizer, texts, ids[begin:begin + LONGEST])
                if count > 1:
                    joined[tuple(ids[begin:begin + count])] = tokenizer.decode(ids[begin:begin + count], skip_special_tokens=False)
                begin += count
        return cls(texts, special, joined)

    def groups(self, ids: Sequence[int]) -> list[tuple[int, int, str]]:
        """Where neighbours stand that make a character together: first, count, text."""
        found, begin, longest = [], 0, max(map(len, self.joined), default=0)
        while begin < len(ids):
            counts = (n for n in range(longest, 1, -1) if tuple(ids[begin:begin + n]) in self.joined)
            count = next(counts, 1)
            if count > 1:
                found.append((begin, count, self.joined[tuple(ids[begin:begin + count])]))
            begin += count
        return found

    def as_json(self) -> dict[str, Any]:
        return {"texts": list(self.texts.items()), "special": sorted(self.special),
                "joined": [[list(ids), text] for ids, text in self.joined.items()]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Pieces:
        """What `as_json` has made.

        Raises
        ------
        KeyError, TypeError, ValueError
            It was something else.
        """
        return cls({int(t): str(text) for t, text in data["texts"]}, frozenset(int(t) for t in data["special"]),
                   {tuple(int(t) for t in ids): str(text) for ids, text in data["joined"]})


def _together(tokenizer: Tokenizer, texts: dict[int, str], ids: list[int]) -> int:
    """How many of these tokens, from the first on, make whole characters only together; 1 where they never do."""
    if HALF_A_CHARACTER not in texts.get(ids[0], ""):
        return 1
    for count in range(2, len(ids) + 1):
        if HALF_A_CHARACTER not in tokenizer.decode(ids[:count], skip_special_tokens=False):
            return count
    return 1
