"""A conversation: its turns, its settings, and what of it fits into a prompt. Nothing here knows of a terminal."""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..carry import WHY_NOT, Carry
from ..model import LLaDAForCausalLM
from ..options import LARGEST_SEED
from ..result import GenerationResult, Step
from .arguments import InputError

FILE_FIELDS = ("system", "turns", "settings")


@dataclass
class Conversation:
    """Questions and answers with one model.

    Attributes
    ----------
    model : LLaDAForCausalLM
    settings : dict
        Options of `generate`, and a seed.
    system : str
    turns : list of (str, str)
        What was said and answered, the oldest first.
    """

    model: LLaDAForCausalLM
    settings: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)
    answers: int = 0
    tokens: int = 0
    rows: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.model.tokenizer is None or self.model.tokenizer.chat_template is None:
            raise InputError("chat: expected a model with a tokenizer and a chat template, found none; generate takes its prompts")
        self.carry = Carry()
        self.check(self.settings)

    def messages(self, question: str) -> list[dict[str, str]]:
        """The prompt for an answer to a question."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in self.turns:
            said += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return [*said, {"role": "user", "content": question}]

    def trim(self, question: str) -> int:
        """Drop the oldest turns until prompt and answer fit within max_tokens; returns how many.

        Raises
        ------
        ValueError
            The question alone does not fit; nothing was dropped.
        """
        assert self.model.tokenizer is not None
        kept, options = self.turns, self._options()
        room = self.model.max_tokens - self.model.options(**options).gen_length
        while (n := len(self.model.tokenizer.encode_chat(self.messages(question)))) > room:
            if not self.turns:
                self.turns = kept
                raise ValueError(f"the prompt has {n} tokens, and beside the answer there is room for {room}")
            self.turns = self.turns[1:]
        return len(kept) - len(self.turns)

    def answer(self, question: str, **watching: Any) -> GenerationResult:
        """Answer, and remember it. `watching` are live, streamer or callback of `generate`."""
        last: list[Step] = []
        watch = watching.pop("callback", None)

        def remember(step: Step) -> object:
            last[:] = [step]
            return watch(step) if watch is not None else None

        try:
            result = self.model.generate(self.messages(question), seed=self.settings.get("seed"), callback=remember,
                                         carry=self.carry if self.carries else None, **watching, **self._options())
        except KeyboardInterrupt:
            if last and (text := last[0].text[0].strip()):  # what had settled is what was said
                self.turns.append((question, text))
            raise
        self.turns.append((question, result.text[0].strip()))
        self.answers += 1
        self.tokens += sum(result.answer_lengths)
        self.rows += result.rows_computed
        self.seconds += result.timings["total"]
        return result

    # ---- settings

    @property
    def carries(self) -> bool:
        """Whether keys and values go from turn to turn."""
        return not self._why_not()

    def _why_not(self) -> str:
        if not self.model.config.attention_block:
            return WHY_NOT
        options = self.model.options(**self._options())
        return "" if options.cache.keeps and not options.cfg_scale else "cache=none and guidance keep none"

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if name != "seed"}

    def check(self, settings: dict[str, Any]) -> None:
        """Raises TypeError or ValueError where `generate` would."""
        options = dict(settings)
        seed = options.pop("seed", None)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED):
            raise ValueError(f"seed: expected a whole number from 0 to 2^128 - 1, found {seed!r}")
        length, most = self.model.options(**options).gen_length, self.model.max_tokens
        if length >= most:
            raise ValueError(f"gen_length: expected fewer than the model's max_tokens ({most}), for a prompt beside them, found {length}")

    def set(self, name: str, value: Any) -> None:
        """Change a setting; None is the default."""
        settings = {**self.settings, name: value}
        if value is None:
            del settings[name]
        self.check(settings)
        self.settings = settings

    def reset(self) -> None:
        """Forget all turns."""
        self.turns = []
        self.carry.close()

    def undo(self) -> bool:
        """Forget the last turn, if there is one."""
        return bool(self.turns and self.turns.pop())

    def stats(self) -> str:
        keys = f"{self.carry.reused} positions of the last prompt" if self.carries else f"none, as {self._why_not()}"
        per_token = f"{self.rows / self.tokens:.0f}" if self.tokens else "-"
        rate = f"{self.tokens / self.seconds:.1f}" if self.seconds else "-"
        return (f"{_counted(len(self.turns), 'turn')} remembered; {_counted(self.answers, 'whole answer')}, "
                f"{_counted(self.tokens, 'token')}, {rate} tokens/s, {per_token} rows/token\nkeys and values reused: {keys}")

    # ---- files

    def save(self, path: str) -> None:
        Path(path).write_text(json.dumps({"system": self.system, "turns": self.turns, "settings": self.settings}, ensure_ascii=False,
                                         indent=1) + "\n", "utf-8")

    def load(self, path: str) -> None:
        """Go on where a file ends.

        Raises
        ------
        InputError
            The file is none that `save` wrote; nothing has changed.
        """
        try:
            found = json.loads(Path(path).read_text("utf-8"))
            system, turns, settings = (found[name] for name in FILE_FIELDS)
            turns = [(question, answer) for question, answer in turns]
            "".join([system, *(text for turn in turns for text in turn)]).encode("utf-8")  # texts, without lone surrogates
            if not isinstance(settings, dict):
                raise TypeError(f"settings: expected an object, found {settings!r}")
            self.check(settings)
        except (KeyError, TypeError, ValueError, RecursionError) as e:
            raise InputError(f"{path}: expected a conversation that /save wrote, found another file ({e})") from e
        self.system, self.turns, self.settings = system, turns, settings


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
