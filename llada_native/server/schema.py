"""What the server says of itself in the terms of OpenAPI 3.1."""
from __future__ import annotations

from typing import Any

from .. import __version__
from .._sampler import REMASKING
from ..backend import CACHE_DTYPES
from ..method import BLOCK_CAUSAL_PRESETS, PRESETS
from ..model import LLaDAForCausalLM
from ..options import LARGEST_SEED
from .fields import COUNTS, FLAGS, LONGEST_SPEC, RANGES, ROLES, SPECS, STEPS_PER_TOKEN
from .settings import Settings

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}


def openapi(settings: Settings, model: LLaDAForCausalLM) -> Schema:
    """The document of /openapi.json."""
    chat = {"messages": {"type": "array", "minItems": 1, "maxItems": settings.messages, "items": _ref("Message")},
            "logprobs": FLAG, **_common(settings, model)}
    token: Schema = {"type": "integer", "minimum": 0, "maximum": model.config.vocabulary - 1}
    ids: Schema = {"type": "array", "items": token, "minItems": 1, "maxItems": model.max_tokens}
    text: Schema = {"type": "string", "minLength": 1}
    several = {"minItems": 1, "maxItems": settings.prompts}
    completion = {"prompt": {"anyOf": [text, ids, {"type": "array", "items": text, **several}, {"type": "array", "items": ids, **several}]},
                  "logprobs": {"const": 0}, **_common(settings, model)}
    bearer: Schema = {} if settings.api_key is None else {"security": [{"key": []}]}
    paths = {
        "/v1/chat/completions": {"post": _completion("chat", "Answer a conversation.", "ChatRequest", "Chat")},
        "/v1/completions": {"post": _completion("completion", "Continue a text.", "CompletionRequest", "Completion")},
        "/v1/models": {"get": _get("models", "The model.", "Models")},
        "/health": {"get": {**_get("health", "Whether it runs.", "Health"), "security": []}},
        "/metrics": {"get": {"operationId": "metrics", "summary": "Counters for Prometheus.",
                             "responses": {"200": {"description": "Text.", "content": {"text/plain": {"schema": TEXT}}}, **ERRORS}}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "llada-native", "version": __version__, "description": "A LLaDA diffusion language model on this machine."},
        "paths": paths,
        **bearer,
        "components": {
            **({} if settings.api_key is None else {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}),
            "schemas": {
                "Message": _object({"role": {"enum": list(ROLES)}, "content": TEXT}, ["role", "content"], True),
                "ChatRequest": _object(chat, ["model", "messages"], True),
                "CompletionRequest": _object(completion, ["model", "prompt"], True),
                "Chat": _answer("chat.completion", {"message": _object({"role": {"const": "assistant"}, "content": TEXT},
                                                                       ["role", "content"])}),
                "Completion": _answer("text_completion", {"text": TEXT}),
                "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _object(
                    {"id": TEXT, "object": {"const": "model"}}, ["id", "object"])}}, ["object", "data"]),
                "Health": _object({"status": TEXT}, ["status"]),
                "Error": _object({"error": _object({"message": TEXT, "type": TEXT, "param": {"type": ["string", "null"]},
                                                    "code": {"type": ["string", "null"]}}, ["message", "type", "param", "code"])},
                                 ["error"]),
            },
        },
    }


def _common(settings: Settings, model: LLaDAForCausalLM) -> Schema:
    """Fields of both kinds of request."""
    length = {"type": "integer", "minimum": 1, "maximum": model.max_tokens}
    stop = {"type": "string", "minLength": 1, "maxLength": settings.stop_length}
    counts: Schema = {name: {"type": "integer", "minimum": 1, "maximum": STEPS_PER_TOKEN * model.max_tokens} if option == "max_steps" else
                      {"type": "integer", "minimum": 0, "maximum": model.config.vocabulary} if option == "top_k" else
                      {"anyOf": [length, {"const": "auto"}]} if option == "gen_length" else length for name, option in COUNTS.items()}
    return {
        "model": {"const": settings.name},
        "n": {"type": "integer", "minimum": 1, "maximum": settings.choices},
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": settings.stops}]},
        "stream": FLAG,
        "stream_options": _object({"include_usage": FLAG}, [], True),
        "seed": {"type": "integer", "minimum": 0, "maximum": LARGEST_SEED},
        "user": TEXT,
        "drafts": {**FLAG, "description": "Of a stream: what is not settled yet, position by position."},
        "replay": {**FLAG, "description": "Keep the run for its replay."},
        "timeout": {"type": "number", "minimum": 0, "maximum": settings.deadline},
        **counts,
        **{name: {"type": "number", "minimum": low, "maximum": high} for name, (low, high) in RANGES.items()},
        **{name: {"type": "string", "maxLength": LONGEST_SPEC} for name in SPECS},
        "preset": {"enum": list(BLOCK_CAUSAL_PRESETS if model.config.attention_block else PRESETS)},
        "remasking": {"enum": list(REMASKING)},
        "cache_dtype": {"enum": list(CACHE_DTYPES)},
        **{name: FLAG for name in FLAGS},
    }


def _answer(kind: str, said: Schema) -> Schema:
    choice = _object({"index": {"type": "integer"}, "finish_reason": {"enum": ["stop", "length"]}, **said},
                     ["index", "finish_reason", *said])
    count = {"type": "integer", "minimum": 0}
    usage = {name: count for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return _object({"id": TEXT, "object": {"const": kind}, "created": count, "model": TEXT, "choices": {"type": "array", "items": choice},
                    "usage": _object(usage, list(usage))}, ["id", "object", "created", "model", "choices", "usage"])


def _completion(name: str, summary: str, request: str, answer: str) -> Schema:
    return {"operationId": name, "summary": summary, "requestBody": {"required": True, "content": {"application/json": {
        "schema": _ref(request)}}}, "responses": {"200": {"description": "The answer.", "content": {
            "application/json": {"schema": _ref(answer)}, "text/event-stream": {"schema": TEXT}}}, **ERRORS}}


def _get(name: str, summary: str, answer: str) -> Schema:
    return {"operationId": name, "summary": summary, "responses": {
        "200": {"description": "The answer.", "content": {"application/json": {"schema": _ref(answer)}}}, **ERRORS}}


def _object(properties: Schema, required: list[str], closed: bool = False) -> Schema:
    return {"type": "object", "properties": properties, "required": required, **({"additionalProperties": False} if closed else {})}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


ERRORS: Schema = {status: {"description": "A refusal or a failure.", "content": {"application/json": {"schema": _ref("Error")}}}
                  for status in ("4XX", "5XX")}
