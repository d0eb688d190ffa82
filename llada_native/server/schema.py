"""What the server says of itself in the terms of OpenAPI 3.1."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import __version__
from .._sampler import REMASKING
from ..backend import CACHE_DTYPES
from ..model import LLaDAForCausalLM
from ..options import LARGEST_SEED
from .fields import (
    CHAT_NEUTRAL,
    COMPLETION_NEUTRAL,
    COUNTS,
    FLAGS,
    LONGEST_SPEC,
    NEUTRAL,
    RANGES,
    ROLES,
    SPECS,
    STEPS_PER_TOKEN,
    presets,
)
from .settings import Settings

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}


def openapi(settings: Settings, model: LLaDAForCausalLM) -> Schema:
    """The document of /openapi.json."""
    chat = {"messages": {"type": "array", "minItems": 1, "maxItems": settings.messages, "items": _ref("Message")},
            "logprobs": FLAG, **_common(settings, model), **_neutral(CHAT_NEUTRAL)}
    token: Schema = {"type": "integer", "minimum": 0, "maximum": model.config.vocabulary - 1}
    ids: Schema = {"type": "array", "items": token, "minItems": 1, "maxItems": model.max_tokens}
    text: Schema = {"type": "string", "minLength": 1}
    several = {"minItems": 1, "maxItems": settings.prompts}
    completion = {"prompt": {"anyOf": [text, ids, {"type": "array", "items": text, **several}, {"type": "array", "items": ids, **several}]},
                  "logprobs": {"enum": [0, False]}, **_common(settings, model), **_neutral(COMPLETION_NEUTRAL)}
    part = _object({"type": {"const": "text"}, "text": TEXT}, ["type", "text"], True)
    bearer: Schema = {} if settings.api_key is None else {"security": [{"key": []}]}
    paths = {
        "/v1/chat/completions": {"post": _completion("chat", "Answer a conversation.", "ChatRequest", "Chat")},
        "/v1/completions": {"post": _completion("completion", "Continue a text.", "CompletionRequest", "Completion")},
        "/v1/models": {"get": _get("models", "The model.", "Models")},
        "/v1/models/{name}": {"get": _get("model", "The same alone.", "Model"), "parameters": [_in_path("name", {"const": settings.name})]},
        "/health": {"get": {**_get("health", "Whether it runs.", "Health"), "security": []}},
        "/metrics": {"get": _text("metrics", "Counters for Prometheus.", "text/plain")},
        "/": {"get": {**_text("page", "The page to ask on.", "text/html"), "security": []}},
        "/replay/{number}": {"get": {**_text("replay", "The page of a run that was kept.", "text/html"), "security": []},
                             "parameters": [_in_path("number", TEXT)]},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "llada-native", "version": __version__, "description": "A LLaDA diffusion language model on this machine."},
        "paths": paths,
        **bearer,
        "components": {
            **({} if settings.api_key is None else {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}),
            "schemas": {
                "Message": _object({"role": {"enum": list(ROLES)}, "content": {"anyOf": [TEXT, {"type": "array", "items": part}]},
                                    "name": TEXT}, ["role", "content"], True),
                "ChatRequest": _object(chat, ["model", "messages"], True),
                "CompletionRequest": _object(completion, ["model", "prompt"], True),
                "Chat": _answer("chat.completion", {"message": _object({"role": {"const": "assistant"}, "content": TEXT},
                                                                       ["role", "content"])}),
                "Completion": _answer("text_completion", {"text": TEXT}),
                "Model": _object({"id": TEXT, "object": {"const": "model"}}, ["id", "object"]),
                "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}, ["object", "data"]),
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
    counts: Schema = {name: {"anyOf": [length, {"const": "auto"}]} if option == "gen_length" else
                      {"type": "integer", "minimum": 0, "maximum": model.config.vocabulary} if option == "top_k" else
                      {"type": "integer", "minimum": 1, "maximum": STEPS_PER_TOKEN * model.max_tokens} for name, option in COUNTS.items()}
    return {
        "model": {"const": settings.name},
        "n": {"type": "integer", "minimum": 1, "maximum": settings.choices},
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": settings.stops}]},
        "stream": FLAG,
        "stream_options": _object({"include_usage": FLAG, "include_obfuscation": {"const": False}}, [], True),
        "seed": {"type": "integer", "minimum": 0, "maximum": LARGEST_SEED},
        "user": TEXT,
        "drafts": {**FLAG, "description": "Of a stream: what is not settled yet, position by position."},
        "replay": {**FLAG, "description": "Keep the run for its replay."},
        "timeout": {"type": "number", "minimum": 0, "maximum": settings.deadline},
        **counts,
        **{name: {"type": "number", "minimum": low, "maximum": high} for name, (low, high) in RANGES.items()},
        **{name: {"type": "string", "maxLength": LONGEST_SPEC} for name in SPECS},
        "preset": {"enum": presets(model)},
        "remasking": {"enum": list(REMASKING)},
        "cache_dtype": {"enum": list(CACHE_DTYPES)},
        **{name: FLAG for name in FLAGS},
        "confidence_eos_eot_inf": {"anyOf": [FLAG, {"const": "compat"}]},
        **_neutral(NEUTRAL),
    }


def _neutral(values: Mapping[str, tuple[Any, ...]]) -> Schema:
    """Fields that are taken where they ask for nothing."""
    return {name: {"enum": list(harmless)} for name, harmless in values.items()}


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
            "application/json": {"schema": _ref(answer)}, "text/event-stream": {}}}, **ERRORS}}


def _get(name: str, summary: str, answer: str) -> Schema:
    return {"operationId": name, "summary": summary, "responses": {
        "200": {"description": "The answer.", "content": {"application/json": {"schema": _ref(answer)}}}, **ERRORS}}


def _text(name: str, summary: str, kind: str) -> Schema:
    return {"operationId": name, "summary": summary, "responses": {
        "200": {"description": "Text.", "content": {kind: {"schema": TEXT}}}, **ERRORS}}


def _in_path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _object(properties: Schema, required: list[str], closed: bool = False) -> Schema:
    return {"type": "object", "properties": properties, "required": required, **({"additionalProperties": False} if closed else {})}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


ERRORS: Schema = {status: {"description": "A refusal or a failure.", "content": {"application/json": {"schema": _ref("Error")}}}
                  for status in ("4XX", "5XX")}
