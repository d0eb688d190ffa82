"""A request's body -> what is asked for, every field checked. Fields that would change nothing are taken, others refused by their names."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from ..generation import Generation, prepared
from ..method import BLOCK_CAUSAL_PRESETS, PRESETS
from ..model import LLaDAForCausalLM
from ..options import LARGEST_SEED, GenerationOptions
from .errors import RefusedError, bad
from .settings import Settings

DEEPEST = 16  # nested lists and objects
STEPS_PER_TOKEN = 4  # an editor may take more steps than there are tokens; no method needs more than that
LONGEST_SPEC = 200  # characters of a part's name with its parameters
TOO_LONG = "context_length_exceeded"
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Options with numbers: the least and the largest that a request may name.
RANGES: dict[str, tuple[float, float]] = {"temperature": (0, 100), "top_p": (0, 1), "cfg_scale": (0, 100),
                                          "repetition_penalty": (0.01, 100)}
COUNTS = {"max_tokens": "gen_length", "max_completion_tokens": "gen_length", "gen_length": "gen_length", "block_length": "block_length",
          "steps": "max_steps", "max_steps": "max_steps", "top_k": "top_k"}
SPECS = ("preset", "selector", "cache", "canvas", "editor", "remasking", "cache_dtype")
FLAGS = ("early_stop", "logits_eos_inf", "confidence_eos_eot_inf")
# Of OpenAI's, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "store": (False,), "service_tier": ("auto", "default")}
CHAT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "parallel_tool_calls": (True, False), "modalities": (["text"],), "top_logprobs": (0,), "metadata": ({},), "reasoning_effort": ("none",)}
COMPLETION_NEUTRAL: dict[str, tuple[Any, ...]] = {"echo": (False,), "best_of": (1,), "suffix": ("",)}
COMMON = {"model", "n", "stop", "stream", "stream_options", "seed", "user", "logprobs", "drafts", "replay", "timeout",
          *RANGES, *COUNTS, *SPECS, *FLAGS}
CHAT_FIELDS = frozenset({"messages", *COMMON, *NEUTRAL, *CHAT_NEUTRAL})
COMPLETION_FIELDS = frozenset({"prompt", *COMMON, *NEUTRAL, *COMPLETION_NEUTRAL})


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes
    ----------
    prompts : list
        As `LLaDAForCausalLM.generate` takes them.
    chat : bool
        Whether they are messages.
    options : dict
        Of generation.
    n : int
        Answers to each prompt.
    stream, usage, drafts : bool
        Whether it is answered in pieces, with a last one on what it took, and with what is not settled yet.
    timeout : float
        Seconds.
    hurried : bool
        Whether it names them itself.
    fields : dict
        What messages of the library begin with, a field, an option or the name of a part: the field that it came from.
    """

    prompts: list[Any]
    chat: bool
    options: dict[str, Any]
    seed: int | None
    n: int
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    drafts: bool
    replay: bool
    logprobs: bool
    timeout: float
    hurried: bool
    fields: dict[str, str]

    def generation(self, model: LLaDAForCausalLM) -> Generation:
        """The same, encoded and checked by the model.

        Raises
        ------
        RefusedError
        """
        options, tokenizer = self.options, model.tokenizer
        if self.chat and (tokenizer is None or tokenizer.chat_template is None):
            raise bad("messages", "the model has no chat template; /v1/completions takes texts or token ids")
        try:
            resolved = GenerationOptions.resolve(options, model._defaults, model.config.vocabulary)
            if resolved.gen_length > model.max_tokens:
                raise ValueError(f"gen_length: expected at most max_tokens ({model.max_tokens}), found {resolved.gen_length}")
            if resolved.max_steps > STEPS_PER_TOKEN * max(resolved.gen_length, resolved.block_length):
                raise ValueError(f"max_steps: expected at most {STEPS_PER_TOKEN} a token, found {resolved.max_steps} for "
                                 f"{resolved.gen_length} tokens")
            if self.logprobs and resolved.remasking != "low_confidence":
                raise ValueError(f"logprobs: are the confidences of remasking='low_confidence', found {resolved.remasking!r}")
            prompts = [prompt for prompt in self.prompts for _ in range(self.n)]
            return prepared(model, prompts, None, self.chat, self.seed, None, options)
        except (TypeError, ValueError) as error:
            message = str(error) if tokenizer is None else str(error).replace(f"{tokenizer.folder}: ", "")  # no client's business
            name = message.partition(":")[0].partition("[")[0]
            field = self.fields.get(name)
            if field is not None and name in {"prompts", *COUNTS.values()}:  # the client's own word for it
                message = field + message.removeprefix(name)
            code = TOO_LONG if "max_tokens (" in message else None
            raise RefusedError(400, message, field, code) from error


def presets(model: LLaDAForCausalLM) -> list[str]:
    """Those that it has."""
    return list(BLOCK_CAUSAL_PRESETS if model.config.attention_block else PRESETS)


def read(body: bytes) -> dict[str, Any]:
    """The object that a body says, in strict JSON without duplicate names."""
    try:
        data = json.loads(body.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_number)
    except (UnicodeDecodeError, RecursionError) as error:
        raise bad(None, "expected JSON in UTF-8, found " + ("other bytes" if isinstance(error, UnicodeDecodeError) else
                                                            "too many levels"), "invalid_json") from error
    except ValueError as error:  # JSONDecodeError, and numbers of thousands of digits
        raise bad(None, f"expected JSON: {error}", "invalid_json") from error
    _check_depth(data)
    if not isinstance(data, dict):
        raise bad(None, f"expected a JSON object, found {_shown(data)}", "invalid_json")
    return {name: value for name, value in data.items() if value is not None}


def chat(data: Mapping[str, Any], settings: Settings, model: LLaDAForCausalLM) -> Asked:
    """A body of /v1/chat/completions."""
    _check_names(data, CHAT_FIELDS, {**NEUTRAL, **CHAT_NEUTRAL})
    messages = data.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= settings.messages:
        found = f"{len(messages)} of them" if isinstance(messages, list) else _shown(messages)
        raise bad("messages", f"expected a list of 1 to {settings.messages} messages, found {found}")
    said = [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    return _asked(data, [said], True, _flag(data, "logprobs"), settings, model)


def completion(data: Mapping[str, Any], settings: Settings, model: LLaDAForCausalLM) -> Asked:
    """A body of /v1/completions."""
    _check_names(data, COMPLETION_FIELDS, {**NEUTRAL, **COMPLETION_NEUTRAL})
    prompt = data.get("prompt")
    prompts = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else [prompt]
    if len(prompts) > settings.prompts:
        raise bad("prompt", f"expected at most {settings.prompts} prompts, found {len(prompts)}")
    for i, one in enumerate(prompts):
        name = "prompt" if one is prompt else f"prompt[{i}]"
        if isinstance(one, list) and one:
            if len(one) > model.max_tokens:
                raise bad(name, f"expected at most {model.max_tokens} tokens, found {len(one)}", TOO_LONG)
            for token in one:
                _checked(name, checks.token_id, token, model.config.vocabulary)
        elif not isinstance(one, str) or not one:
            raise bad(name, f"expected a text or a list of token ids, or a list of those, found {_shown(one)}")
        else:
            _text(name, one)
    if len({isinstance(one, str) for one in prompts}) > 1:
        raise bad("prompt", "expected texts or token ids, found both")
    if not isinstance(prompts[0], str):
        prompts = [np.array(one, np.int32) for one in prompts]
    logprobs = data.get("logprobs", False)
    if logprobs is not False:
        _count("logprobs", logprobs, 0, 0)  # of the chosen tokens alone
    return _asked(data, prompts, False, logprobs is not False, settings, model)


def _asked(data: Mapping[str, Any], prompts: list[Any], is_chat: bool, logprobs: bool, settings: Settings,
           model: LLaDAForCausalLM) -> Asked:
    name = data.get("model")
    if not isinstance(name, str):
        raise bad("model", f"expected {settings.name!r}, found {_shown(name)}")
    if name != settings.name:
        raise RefusedError(404, f"model: expected {settings.name!r}, the only one here, found {_shown(name)}", "model", "model_not_found")
    if "user" in data:
        _text("user", data["user"])
    stop = data.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > settings.stops:
        raise bad("stop", f"expected a text or a list of at most {settings.stops}, found {_shown(stop)}")
    for text in stops:
        if not isinstance(text, str) or not 1 <= len(text) <= settings.stop_length:
            raise bad("stop", f"expected texts of 1 to {settings.stop_length} characters, found {_shown(text)}")
        _text("stop", text)
    stream, usage = _flag(data, "stream"), data.get("stream_options", {})
    if not isinstance(usage, dict) or not usage.keys() <= {"include_usage", "include_obfuscation"} or usage.get("include_obfuscation"):
        raise bad("stream_options", f"expected {{'include_usage': true or false}}, found {_shown(usage)}")
    drafts = _flag(data, "drafts")
    for wish in ("stream_options", "drafts"):
        if not stream and data.get(wish):
            raise bad(wish, "is for stream=true")
    timeout = _number("timeout", data.get("timeout", settings.deadline), 0, settings.deadline)
    seed = data.get("seed")
    return Asked(prompts, is_chat, _options(data, settings, model), None if seed is None else _count("seed", seed, 0, LARGEST_SEED),
                 _count("n", data.get("n", 1), 1, settings.choices), tuple(stops), stream,
                 _flag(usage, "include_usage"), drafts, _flag(data, "replay"), logprobs, timeout, "timeout" in data, _fields(data, is_chat))


def _fields(data: Mapping[str, Any], is_chat: bool) -> dict[str, str]:
    return {**{data[field].partition(":")[0]: field for field in SPECS if ":" in data.get(field, "")},
            **{option: field for field, option in COUNTS.items() if field in data}, **{field: field for field in data},
            "prompts": "messages" if is_chat else "prompt"}


def _options(data: Mapping[str, Any], settings: Settings, model: LLaDAForCausalLM) -> dict[str, Any]:
    given: dict[str, Any] = {}
    first: dict[str, str] = {}
    for field, option in COUNTS.items():
        if field in data:
            if (before := first.setdefault(option, field)) != field:
                raise bad(field, f"is another name of {before}, which is given too")
            value = data[field]
            least, largest = (0, model.config.vocabulary) if option == "top_k" else (1, STEPS_PER_TOKEN * model.max_tokens)
            auto = option == "gen_length" and value == "auto"
            given[option] = value if auto else _count(field, value, least, model.max_tokens if option == "gen_length" else largest)
    for field, (low, high) in RANGES.items():
        if field in data:
            given[field] = _number(field, data[field], low, high)
    for field in SPECS:
        if field in data:
            value = data[field]
            if not isinstance(value, str) or len(value) > LONGEST_SPEC:
                raise bad(field, f"expected a name of at most {LONGEST_SPEC} characters, found {_shown(value)}")
            given[field] = _text(field, value)
    for field in FLAGS:
        if field in data:
            compat = field == "confidence_eos_eot_inf" and data[field] == "compat"
            given[field] = "compat" if compat else _flag(data, field)
    defaults = {name: value for name, value in settings.defaults.items() if name not in given}
    if given.get("gen_length") == "auto":
        defaults.pop("max_steps", None)
    # An answer is what it is without; only the tokens behind its end are not computed.
    end: dict[str, Any] = {} if model._defaults.get("eos_id") is None else {"early_stop": True}
    return {**end, **defaults, **given}


def _message(name: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise bad(name, f"expected an object, found {_shown(message)}")
    known = {key: value for key, value in message.items() if value is not None}
    if unknown := sorted(known.keys() - {"role", "content", "name"}):
        raise bad(name, f"{unknown[0]!r} is not supported; expected role and content", "unsupported_field")
    role, content = known.get("role"), known.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise bad(f"{name}.role", f"expected one of {', '.join(ROLES)}, found {_shown(role)}")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.keys() != {"type", "text"} or part["type"] != "text" or not isinstance(part["text"], str):
                raise bad(f"{name}.content", f"expected text, or parts with type 'text' and text, found {_shown(part)}")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise bad(f"{name}.content", f"expected text, found {_shown(content)}")
    _text(f"{name}.name", known.get("name", ""))
    return {"role": ROLES[role], "content": _text(f"{name}.content", content)}


def _check_names(data: Mapping[str, Any], known: frozenset[str], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    for name, value in data.items():
        if name not in known:
            raise bad(_shown(name)[1:-1], "is not supported", "unsupported_field")
        if name in neutral and not any(value == harmless and isinstance(value, bool) == isinstance(harmless, bool)
                                       for harmless in neutral[name]):
            expected = " or ".join(json.dumps(harmless) for harmless in neutral[name])
            raise bad(name, f"is not supported; expected none or {expected}, found {_shown(value)}", "unsupported_field")


def _check_depth(data: Any) -> None:
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(DEEPEST):
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item) if isinstance(inner, dict | list)]
        if not level:
            return
    raise bad(None, f"expected at most {DEEPEST} levels of lists and objects", "invalid_json")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _checked(name: str, check: Callable[..., Any], *rest: Any) -> Any:
    try:
        return check(name, *rest)
    except (TypeError, ValueError) as error:
        raise RefusedError(400, _cut(str(error)), name) from error


def _count(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(name, f"expected a whole number, found {_shown(value)}")
    return int(_checked(name, checks.whole_number, value, low, high))


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(name, f"expected a number, found {_shown(value)}")
    return float(_checked(name, checks.within, value, low, high))


def _flag(data: Mapping[str, Any], name: str) -> bool:
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise bad(name, f"expected true or false, found {_shown(value)}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise bad(name, f"expected a text, found {_shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad(name, "expected text, found half of a surrogate pair") from error
    return value


def _shown(value: Any) -> str:
    """As JSON has it; a text stands in single quotes, and null is nothing, as in fields that are missing."""
    if value is None:
        return "nothing"
    if isinstance(value, int) and not isinstance(value, bool):
        return checks.shown(value)
    return _cut(repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return checks.cut(text.encode("utf-8", "backslashreplace").decode())
