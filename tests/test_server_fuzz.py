"""Requests made up from the server's own schema, and worse ones: never a server error, and every answer as the schema says."""
from __future__ import annotations

import json

import hypothesis
import pytest
import schemathesis
import servers
from hypothesis import strategies as st
from schemathesis import checks
from starlette.testclient import TestClient

from llada_native import LLaDAForCausalLM
from llada_native.scheduler import Scheduler
from llada_native.server.app import create_app
from llada_native.server.settings import Settings

SETTINGS = Settings("demo", hosts=frozenset(), messages=4, prompts=3, choices=2)
FUZZ = hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None,
                           suppress_health_check=list(hypothesis.HealthCheck))


@pytest.fixture(scope="module")
def app():
    """Short answers: it is the requests that vary."""
    with LLaDAForCausalLM.from_pretrained(max_tokens=40) as model:
        scheduler = Scheduler(model)
        yield create_app(model, scheduler, SETTINGS)
        scheduler.close()


@pytest.fixture(scope="module")
def server():
    with LLaDAForCausalLM.from_pretrained(max_tokens=160) as model, servers.running(model, messages=4, prompts=3, choices=2,
                                                                                               defaults={"gen_length": 8}) as server:
        yield server


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/", "/health",
                                  "/metrics"])
def test_schema(server, path, mode):
    """What the schema allows, and what it forbids."""
    api = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    operation = api[path]["POST" if "completions" in path else "GET"]

    @FUZZ
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        found = case.call_and_validate(timeout=servers.PATIENCE, checks=[
            checks.not_a_server_error, checks.response_schema_conformance, checks.content_type_conformance])
        seen.add(found.status_code)

    seen = set()
    try:
        check()
    except hypothesis.errors.Unsatisfiable:  # nothing of it can be wrong
        assert "completions" not in path and mode is schemathesis.GenerationMode.NEGATIVE
        return
    assert mode is not schemathesis.GenerationMode.POSITIVE or 200 in seen


TEXT = st.text(st.characters(codec=None), max_size=20)  # halves of surrogate pairs too
ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
                        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12)
GOOD = {"/v1/chat/completions": {"model": "demo", "messages": [{"role": "user", "content": "1, 2"}], "max_tokens": 4},
        "/v1/completions": {"model": "demo", "prompt": "1, 2", "max_tokens": 4}}


@pytest.mark.parametrize("path", GOOD)
def test_bodies_that_are_too_deep(app, path):
    """As deep as Python's parser goes, whose limit is not that of what writes messages."""
    for n in (17, 500, *range(850, 1010, 2), 5000):
        found = TestClient(app).post(path, content="[" * n + "]" * n, headers={"content-type": "application/json"})
        assert found.status_code == 400 and found.json()["error"]["code"] == "invalid_json", n


@pytest.mark.parametrize("path", GOOD)
@FUZZ
@hypothesis.given(data=st.data())
def test_one_field_is_anything(app, path, data):
    from llada_native.server.fields import CHAT_FIELDS, COMPLETION_FIELDS

    name = data.draw(st.sampled_from(sorted(CHAT_FIELDS if "chat" in path else COMPLETION_FIELDS)))
    body = {**GOOD[path], name: data.draw(ANYTHING)}
    found = TestClient(app).post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert found.status_code < 500, found.text
    if found.status_code >= 400:
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}


@FUZZ
@hypothesis.given(body=st.binary(max_size=200), at=st.integers(0, 80), cut=st.booleans())
def test_damaged_bodies(app, body, at, cut):
    good = json.dumps(GOOD["/v1/completions"]).encode()
    damaged = good[:at] if cut else good[:at] + body + good[at:]
    found = TestClient(app).post("/v1/completions", content=damaged, headers={"content-type": "application/json"})
    assert found.status_code in (200, 400)
