"""The HTTP interface: shapes of answers and errors, every field checked, strangers refused."""
from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

from llada_native import LLaDAForCausalLM
from llada_native.scheduler import Answer, Scheduler
from llada_native.server import fields
from llada_native.server.app import create_app
from llada_native.server.errors import RefusedError
from llada_native.server.settings import Settings
from llada_native.server.shapes import Shapes

PROMPT = "Sort these numbers: 31, 7, 52, 12."
ANSWER = "7, 12, 31, 52"
CHAT = {"model": "demo", "messages": [{"role": "user", "content": PROMPT}]}
PLAIN = {"model": "demo", "prompt": "What is 17 plus 25?", "max_tokens": 16}
PATHS = {"/v1/chat/completions": CHAT, "/v1/completions": PLAIN}


def client_of(model, **settings):
    return TestClient(create_app(model, Scheduler(model), Settings("demo", **settings)), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def client():
    with LLaDAForCausalLM.from_pretrained() as model, client_of(model) as client:
        yield client


def asked(client, path="/v1/chat/completions", **more):
    return client.post(path, json={**PATHS[path], **more})


def refused(response, status=400):
    assert response.status_code == status, response.text
    [error] = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events(response):
    assert response.status_code == 200 and response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *parts, last, nothing = response.text.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


# ---- answers

def test_chat(client, demo):
    body = asked(client, seed=1).json()
    alone = demo.generate(CHAT["messages"], seed=1, early_stop=True)
    [choice] = body.pop("choices")
    assert choice == {"index": 0, "message": {"role": "assistant", "content": ANSWER, "refusal": None}, "logprobs": None,
                      "finish_reason": "stop"}
    prompt, tokens = alone.prompt_lengths[0], alone.answer_lengths[0]
    assert body.pop("usage") == {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    measures = body.pop("llada")
    assert measures.pop("seconds") > 0
    assert measures == {"forward_passes": alone.n_forward, "rows_computed": alone.rows_computed,
                        "tokens_per_forward": round(tokens / alone.n_forward, 3)}
    assert body.pop("id").startswith("chatcmpl-") and body.pop("system_fingerprint").startswith("llada-native-")
    assert body.pop("created") > 1.7e9 and body == {"object": "chat.completion", "model": "demo"}


def test_completion(client, demo):
    body = asked(client, "/v1/completions").json()
    alone = demo.generate(PLAIN["prompt"], gen_length=16, chat=False)
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert body["choices"] == [{"index": 0, "text": alone.text[0], "logprobs": None, "finish_reason": alone.finish_reason[0]}]


@pytest.mark.parametrize("prompt", [[31, 4, 5], [[31, 4, 5], [7]], ["What is 1 plus 2?", "And 3?"]], ids=["ids", "lists", "texts"])
def test_kinds_of_prompts(client, demo, prompt):
    found = asked(client, "/v1/completions", prompt=prompt, n=2, seed=3, temperature=1.0)
    several = prompt if isinstance(prompt[0], list | str) else [prompt]
    alone = demo.generate([p for p in several for _ in range(2)], chat=False, seed=3, temperature=1.0, gen_length=16, early_stop=True)
    assert [c["text"] for c in found.json()["choices"]] == alone.text
    assert found.json()["usage"]["prompt_tokens"] == sum(alone.prompt_lengths[::2])


def test_options_reach_the_model(client, demo):
    options = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "cfg_scale": 0.5, "block_length": 8, "repetition_penalty": 1.1, "seed": 11}
    found = asked(client, max_completion_tokens=32, steps=16, remasking="random", logits_eos_inf=True, **options)
    alone = demo.generate(PROMPT, gen_length=32, max_steps=16, remasking="random", logits_eos_inf=True, early_stop=True, **options)
    assert found.json()["choices"][0]["message"]["content"] == alone.text[0]
    found = asked(client, preset="fast", selector="threshold:tau=0.8", cache="delayed:refresh_every=4", cache_dtype="float16")
    alone = demo.generate(PROMPT, preset="fast", selector="threshold:tau=0.8", cache="delayed:refresh_every=4", cache_dtype="float16")
    assert found.json()["llada"]["rows_computed"] == alone.rows_computed
    assert asked(client, gen_length="auto").json()["choices"][0]["message"]["content"] == demo.generate(PROMPT, gen_length="auto").text[0]


def test_a_prime_length_is_one_block(client, demo):
    found = asked(client, max_tokens=97, steps=16)
    alone = demo.generate(PROMPT, gen_length=97, max_steps=16, block_length=97, early_stop=True)
    assert found.json()["choices"][0]["message"]["content"] == alone.text[0] == demo.generate(PROMPT, gen_length=97, max_steps=16).text[0]
    assert found.json()["llada"]["rows_computed"] == alone.rows_computed


def test_messages_in_parts_and_roles(client, demo):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Sort these "},
                {"type": "text", "text": "numbers: 3, 1."}], "name": "me"}, {"role": "assistant", "content": "1, 3", "refusal": None},
                {"role": "user", "content": PROMPT}]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sort these numbers: 3, 1."},
             {"role": "assistant", "content": "1, 3"}, {"role": "user", "content": PROMPT}]
    assert asked(client, messages=messages).json()["choices"][0]["message"]["content"] == demo.generate(plain).text[0]


def test_special_tokens_in_a_message_are_text(client, demo):
    """A user cannot end a turn, or place masks, by typing their tokens."""
    content = "<|eot_id|><|mdm_mask|>" + PROMPT
    usage = asked(client, messages=[{"role": "user", "content": content}]).json()["usage"]
    assert usage["prompt_tokens"] == len(demo.tokenizer.encode_chat([{"role": "user", "content": content}]))


def test_fields_that_ask_for_nothing(client):
    plain = asked(client).json()["choices"]
    harmless = {name: values[0] for name, values in {**fields.NEUTRAL, **fields.CHAT_NEUTRAL}.items()}
    assert {"metadata", "parallel_tool_calls", "reasoning_effort"} < set(harmless)
    assert asked(client, **harmless, user="me", stop=[], n=1, seed=None, temperature=None).json()["choices"] == plain


def test_logprobs_are_confidences(client, demo):
    alone = demo.generate(PROMPT)
    tokens = alone.sequences[0][alone.prompt_lengths[0]:][:alone.answer_lengths[0]]
    expected = [math.log(c) for c in alone.confidence[0][:len(tokens)]]
    content = asked(client, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert [c["logprob"] for c in content] == expected and "".join(c["token"] for c in content) == ANSWER
    assert all(c["bytes"] is None and c["top_logprobs"] == [] for c in content)
    old = asked(client, "/v1/completions", prompt=PROMPT, logprobs=0).json()["choices"][0]
    assert "".join(old["logprobs"]["tokens"]).startswith(old["text"]) and old["logprobs"]["text_offset"][:1] in ([], [0])
    assert len(old["logprobs"]["tokens"]) == len(old["logprobs"]["token_logprobs"]) == len(old["logprobs"]["text_offset"])


def test_special_tokens_take_no_characters(client, demo):
    [choice] = asked(client, "/v1/completions", prompt="user\n\nWhat is 12 plus 30?assistant", logprobs=0).json()["choices"]
    found, special = choice["logprobs"], 0
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if token.startswith("<|"):
            special += 1
        else:
            assert choice["text"][offset:offset + len(token)] == token
    assert special


def test_logprobs_are_finite():
    """Also of confidences that have no logarithm, which JSON could not say."""
    shapes = Shapes(SimpleNamespace(chat=True, logprobs=True, prompts=[""], n=1), "demo", SimpleNamespace(of=str), [])
    found = shapes._logprobs(Answer("", "stop", np.arange(3, dtype=np.int32), np.array([0.0, np.nan, 0.5])))
    assert [c["logprob"] for c in found["content"]] == [-9999.0, -9999.0, math.log(0.5)]


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_says_the_same(client, path):
    whole = asked(client, path, n=2, seed=1, temperature=0.5).json()
    said = events(asked(client, path, n=2, seed=1, temperature=0.5, stream=True, stream_options={"include_usage": True}))
    assert {e["object"] for e in said} == {"chat.completion.chunk" if "chat" in path else "text_completion"}
    assert len({e["id"] for e in said}) == 1 and said[-1]["choices"] == [] and said[-1]["usage"] == whole["usage"]
    for i, choice in enumerate(whole["choices"]):
        mine = [c for e in said for c in e["choices"] if c["index"] == i]
        text = "".join(c["delta"].get("content", "") if "chat" in path else c["text"] for c in mine)
        assert text == (choice["message"]["content"] if "chat" in path else choice["text"])
        assert [c["finish_reason"] for c in mine][:-1] == [None] * (len(mine) - 1) and mine[-1]["finish_reason"] == choice["finish_reason"]
        assert "chat" not in path or mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert not any("draft" in c for c in mine)


@pytest.mark.parametrize("stop", ["31", ["zzz", ", 3"], [ANSWER[-2:]], ["7"]])
def test_stop_strings(client, stop):
    stops = [stop] if isinstance(stop, str) else stop
    expected = min(ANSWER.partition(s)[0] for s in stops if s in ANSWER)
    [choice] = asked(client, stop=stop).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
    said = events(asked(client, stop=stop, stream=True, block_length=1, max_tokens=32))
    assert "".join(c["delta"].get("content", "") for e in said for c in e["choices"]) == expected


def test_drafts(client, demo):
    """Every position with its state; text is settled only."""
    said = events(asked(client, stream=True, drafts=True, max_tokens=32, block_length=32))
    drafts = [c["draft"] for e in said for c in e["choices"] if "draft" in c]
    assert drafts and all(len(d["cells"]) == 32 and 0 <= d["step"] < d["steps"] == 32 for d in drafts)
    assert [d["forward"] for d in drafts] == sorted({d["forward"] for d in drafts})
    text = ""
    for e in said:
        for c in e["choices"]:
            text += c["delta"].get("content", "")
            if "draft" in c:
                assert "".join(t for t, state in c["draft"]["cells"] if state == 2) == text
    assert text == ANSWER
    states = [state for _, state in drafts[-1]["cells"]]  # the end token is none of the answer
    assert states.count(2) == demo.generate(PROMPT, gen_length=32, block_length=32).answer_lengths[0] and set(states) == {2, 3}


def test_drafts_of_an_answer_that_grows(client):
    said = events(asked(client, stream=True, drafts=True, max_tokens=None, canvas="grow:start=8,step=8,most=64,check=8,enough=1"))
    sizes = [len(c["draft"]["cells"]) for e in said for c in e["choices"] if "draft" in c]
    assert sizes == sorted(sizes) and sizes[-1] == 64 and said[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_server_may_have_defaults(demo):
    with client_of(LLaDAForCausalLM.from_pretrained(), defaults={"preset": "fast", "gen_length": 32}) as client:
        assert asked(client).json()["llada"]["rows_computed"] == demo.generate(PROMPT, preset="fast", gen_length=32).rows_computed
        alone = demo.generate(PROMPT, gen_length=16, preset="reference", early_stop=True)
        assert asked(client, max_tokens=16, preset="reference").json()["llada"]["rows_computed"] == alone.rows_computed
    with client_of(LLaDAForCausalLM.from_pretrained(), defaults={"gen_length": 32, "max_steps": 16}) as client:
        alone = demo.generate(PROMPT, gen_length="auto")  # which has no number of steps either
        assert asked(client, gen_length="auto").json()["choices"][0]["message"]["content"] == alone.text[0]


def test_models_health_and_schema(client):
    [card] = client.get("/v1/models").json()["data"]
    assert card["id"] == "demo" and card["object"] == "model" and card["max_tokens"] == 1024 and card["chat"]
    assert client.get("/v1/models/demo").json() == card
    assert refused(client.get("/v1/models/gpt"), 404)["code"] == "model_not_found"
    assert client.get("/health").json()["status"] == "ok"
    schema = client.get("/openapi.json").json()
    for path, known in (("ChatRequest", fields.CHAT_FIELDS), ("CompletionRequest", fields.COMPLETION_FIELDS)):
        assert set(schema["components"]["schemas"][path]["properties"]) == known


def test_metrics(client):
    def count(line):
        [number] = [text.rpartition(" ")[2] for text in client.get("/metrics").text.splitlines() if text.startswith(line + " ")]
        return float(number)

    lines = ('llada_http_responses_total{path="/v1/chat/completions",status="200"}', 'llada_requests_total{ending="finished"}',
             "llada_generated_tokens_total", "llada_forward_passes_total", "llada_rows_total", "llada_request_seconds_count",
             'llada_request_seconds_bucket{le="+Inf"}')
    asked(client)
    before = [count(line) for line in lines]
    body = asked(client).json()
    work = [body["usage"]["completion_tokens"], body["llada"]["forward_passes"], body["llada"]["rows_computed"]]
    refused(asked(client, n=0))
    refused(client.get("/v1/chat/completions"), 405)  # which took no time that says anything
    assert [count(line) - b for line, b in zip(lines, before, strict=True)] == [1, 1, *work, 1, 1]
    assert client.get("/metrics").headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    client.get("/whatever/somebody/invents")
    assert "invents" not in client.get("/metrics").text


def test_the_page(client):
    response = client.get("/")
    assert "script-src 'self'" in response.headers["content-security-policy"] and "default-src 'none'" in \
        response.headers["content-security-policy"]
    for part in ("page.js", "page.css", "icon.svg"):
        found = client.get(f"/page/{part}")
        assert found.status_code == 200 and "//" not in found.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
    assert client.get("/page/../app.py").status_code == client.get("/page/index.htm").status_code == 404
    assert {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}.items() <= dict(response.headers).items()


def test_replays(client, monkeypatch):
    """Kept where they are asked for, the last ones; served in a sandbox."""
    from llada_native.server import app

    monkeypatch.setattr(app, "replay_page", lambda result: f"<p>{result.text[0]}</p>")
    assert "replay" not in asked(client, max_tokens=8).json()["llada"]
    addresses = [asked(client, max_tokens=8, replay=True).json()["llada"]["replay"] for _ in range(18)]
    found = client.get(addresses[-1])
    assert found.text.startswith("<p>") and "sandbox allow-scripts" in found.headers["content-security-policy"]
    assert [client.get(a).status_code for a in addresses] == [404] * 2 + [200] * 16


def test_what_replays_keep_is_bounded():
    """Of predictions by their number: 8 passes that looked at 8 down to 1 masks are 36."""
    drafted = {"stream": True, "drafts": True, "replay": True, "max_tokens": 8, "early_stop": False}
    with client_of(LLaDAForCausalLM.from_pretrained(), replayed_predictions=100) as client:
        addresses = [events(asked(client, **drafted))[-1]["llada"]["replay"] for _ in range(3)]
        assert [client.get(a).status_code for a in addresses] == [404, 200, 200]
        assert "replay" not in events(asked(client, **{**drafted, "max_tokens": 16}))[-1]["llada"]


# ---- refusals

CASES = {
    # field: [(value, part of the message)]
    "model": [(None, "expected 'demo', found nothing"), (3, "expected 'demo', found 3")],
    "n": [(0, "expected 1 to 8"), (9, "expected 1 to 8"), (1.5, "expected a whole number"), (True, "expected a whole number")],
    "max_tokens": [(0, "expected 1 to 1024, found 0"), (-1, "found -1"), (1025, "1025"), ("many", "whole number"), (1e3, "whole number"),
                   (10**40, "expected 1 to 1024"), ([], "whole number")],
    "block_length": [(0, "expected 1 to 4096"), (7, "divisor of gen_length"), (5000, "expected 1 to 4096")],
    "steps": [(0, "expected 1 to 4096"), (5, "multiple of the number of blocks"), (1 << 24, "expected 1 to 4096")],
    "temperature": [(-0.1, "expected a number from 0 to 100"), (1e9, "1e\\+09|1000000000"), ("hot", "expected a number"),
                    (False, "expected a number")],
    "top_p": [(0, "above 0 and up to 1"), (1.01, "from 0 to 1")],
    "top_k": [(-1, "expected 0 to 512"), (2.0, "whole number")],
    "cfg_scale": [(-1, "from 0 to 100"), (101, "from 0 to 100")],
    "repetition_penalty": [(0, "from 0.01 to 100")],
    "seed": [(-1, "expected 0 to"), (1 << 129, "expected 0 to"), ("x", "whole number")],
    "timeout": [(-1, "from 0 to 300"), (301, "from 0 to 300")],
    "stop": [([""], "1 to 256 characters"), ("x" * 257, "1 to 256 characters"), (["a"] * 5, "at most 4"), (7, "expected a text or a list"),
             ([7], "expected texts"), ("\ud800", "surrogate")],
    "stream": [("yes", "expected true or false"), (1, "expected true or false")],
    "stream_options": [({"include_usage": True}, "is for stream=true"), ([], "include_usage"), ({"x": 1}, "include_usage")],
    "drafts": [(True, "is for stream=true")],
    "preset": [("quick", "'reference', 'balanced', 'fast'"), (1, "expected a name"), ("x" * 201, "at most 200 characters")],
    "selector": [("best", "expected .* of quota, threshold"), ("threshold:tau=2", "tau"), ("threshold:tau=nan", "tau"),
                 ("\ud800", "surrogate")],
    "canvas": [("causal_blocks:length=32", "block-causal"), ("grow:start=4000,most=8000", "max_tokens \\(1024\\)"),
               ("grow:start=1000000", "grow: most")],
    "early_stop": [("no", "expected true or false")],
    "confidence_eos_eot_inf": [("maybe", "expected true or false")],
    "user": [(5, "expected a text")],
    "frequency_penalty": [(0.5, "is not supported; expected none or 0, found 0.5"), (False, "is not supported")],
    "logit_bias": [({"50": -100}, "is not supported")],
    "tool_choice": [("required", 'expected none or "none" or "auto"')],
    "tools": [([{"type": "function"}], "is not supported")],
    "response_format": [({"type": "json_object"}, "is not supported")],
    "top_logprobs": [(3, "is not supported; expected none or 0")],
    "beam_width": [(2, "is not supported")],
    "prompt": [("x", "is not supported")],
    "mask_id": [(5, "is not supported")],
    "messages": [([], "list of 1 to 256 messages, found 0"), ("hi", "found 'hi'"), ([{"role": "user", "content": "x"}] * 257, "found 257")],
}


@pytest.mark.parametrize("field", CASES)
def test_every_field_is_checked(client, field):
    for value, message in CASES[field]:
        body = {**CHAT, field: value}
        error = refused(client.post("/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"}))
        assert re.search(message, error["message"]), error
        assert error["type"] == "invalid_request_error"
        assert error["param"] == field or (field == "canvas" and "max_tokens" in error["message"]), error


@pytest.mark.parametrize(("message", "expected"), [
    ("hi", "messages[0]: expected an object, found 'hi'"), ({"role": "user"}, "content: expected text, found nothing"),
    ({"role": "tool", "content": "x"}, "role: expected one of system, developer, user, assistant, found 'tool'"),
    ({"role": ["user"], "content": "x"}, "role: expected one of"), ({"content": "x"}, "role: expected one of"),
    ({"role": "user", "content": "x", "tool_calls": []}, "'tool_calls' is not supported"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "parts with type 'text'"),
    ({"role": "user", "content": "\ud800"}, "surrogate"), ({"role": "user", "content": "x", "name": 3}, "name: expected a text, found 3")])
def test_messages_are_checked(client, message, expected):
    body = json.dumps({**CHAT, "messages": [message]})
    error = refused(client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"}))
    assert expected in error["message"] and error["param"].startswith("messages[0]")


def test_models_that_cannot_chat(tiny):
    """And what a template says, without the folder that it lies in."""
    with client_of(LLaDAForCausalLM(tiny[0])) as client:
        error = refused(asked(client, max_tokens=8))
        assert error["param"] == "messages" and "the model has no chat template; /v1/completions takes" in error["message"]
        assert client.get("/v1/models").json()["data"][0]["chat"] is False
    model = LLaDAForCausalLM.from_pretrained()
    model.tokenizer.chat_template = "{{ raise_exception('no system prompt') }}"
    with client_of(model) as client:
        assert refused(asked(client))["message"] == "the chat template failed: no system prompt"


@pytest.mark.parametrize(("prompt", "expected"), [
    ("", "expected a text or a list"), ([], "expected a text or a list"), (5, "expected a text or a list"), ([""], "prompt[0]: expected a"),
    (["a"] * 17, "at most 16 prompts, found 17"), ([512], "token id from 0 to 511, found 512"), ([-1], "token id"), ([1.5], "token id"),
    ([True], "token id"), ([[1], "a"], "found both"), ([[1], []], "prompt[1]"), ([10**30], "token id"), ({"a": 1}, "expected a text"),
    ([7] * 1009, "within the model's max_tokens (1024), found a prompt of 1009"), ([7] * 5000, "at most 1024 tokens, found 5000"),
    ([7] * 2000 + [10**30], "at most 1024 tokens")])
def test_prompts_are_checked(client, prompt, expected):
    error = refused(asked(client, "/v1/completions", prompt=prompt))
    assert expected in error["message"]
    assert (error["code"] == "context_length_exceeded") == ("1024" in expected)


def test_errors_have_the_names_that_were_sent(client):
    error = refused(asked(client, max_tokens=64, steps=7))
    assert error["message"].startswith("steps: expected a multiple") and error["param"] == "steps"
    error = refused(asked(client, max_tokens=1024))
    assert error["message"].startswith("messages: expected prompt and answer within the model's max_tokens (1024)")


def test_names_of_the_same_field(client):
    for names in (("max_tokens", "max_completion_tokens"), ("max_tokens", "gen_length"), ("steps", "max_steps")):
        error = refused(asked(client, **dict.fromkeys(names, 8)))
        assert error["message"] == f"{names[1]}: is another name of {names[0]}, which is given too" and error["param"] == names[1]
    assert "logprobs: are the confidences" in refused(asked(client, logprobs=True, remasking="random"))["message"]
    assert refused(asked(client, model="gpt"), 404)["code"] == "model_not_found"
    assert refused(asked(client, "/v1/completions", logprobs=1))["param"] == "logprobs"
    assert "at most 16 answers" in refused(asked(client, "/v1/completions", prompt=["a"] * 3, n=6))["message"]


@pytest.mark.parametrize(("body", "expected"), [
    (b"", "expected JSON"), (b"{", "expected JSON"), (b"[]", "expected a JSON object"), (b"\xff\xfe", "UTF-8"), (b"null", "JSON object"),
    (b'{"model": "demo", "model": "demo"}', "twice"), (b'{"temperature": NaN}', "NaN is no number"), (b'{"seed": -Infinity}', "no number"),
    (b"[" * 100000, "too many levels"), (b'{"a":' * 50000, "too many levels"), (b'{"stop": ' + b"[" * 20 + b"]" * 20 + b"}", "16 levels"),
    (b'{"n": ' + b"1" * 5000 + b"}", "expected JSON"), (b'{"model": "demo"} x', "expected JSON")])
def test_bodies_that_are_not_json(client, body, expected):
    error = refused(client.post("/v1/completions", content=body, headers={"content-type": "application/json"}))
    assert expected in error["message"] and error["code"] == "invalid_json"


@pytest.mark.parametrize(("lists", "expected"), [(15, "stop: expected texts"), (16, "at most 16 levels")])
def test_levels_of_lists_and_objects_are_counted(client, lists, expected):
    body = b'{"model": "demo", "prompt": "a", "stop": ' + b"[" * lists + b"1" + b"]" * lists + b"}"
    error = refused(client.post("/v1/completions", content=body, headers={"content-type": "application/json"}))
    assert expected in error["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_forms_of_other_sites_are_refused(client, kind):
    """A page may send these to any address without asking first."""
    assert "application/json" in refused(client.post("/v1/completions", content=json.dumps(PLAIN), headers={"content-type": kind}), 415)[
        "message"]


def test_large_heads(client):
    assert refused(client.get("/health", headers={"x": "a" * (1 << 14)}), 431)["code"] == "head_too_large"
    assert refused(client.get("/health?" + "a" * (1 << 14)), 431)["code"] == "head_too_large"
    assert client.get("/health", headers={"x": "a" * 15000}).status_code == 200


def test_large_bodies(client):
    for headers in ({}, {"content-length": "99999999999999999999999"}):
        assert refused(client.post("/v1/completions", content=b"x" * ((1 << 20) + 1), headers={"content-type": "application/json",
                                                                                             **headers}), 413)["code"] == "body_too_large"


def test_paths_and_methods(client):
    assert refused(client.get("/v1/nothing"), 404)["type"] == "not_found_error"
    assert refused(client.get("/v1/chat/completions"), 405)["type"] == "invalid_request_error"


@pytest.mark.parametrize(("host", "good"), [
    ("127.0.0.1", True), ("localhost:8000", True), ("LOCALHOST", True), ("[::1]:80", True), ("evil.example", False), ("", False),
    ("127.0.0.1.evil.example", False), ("localhost@evil.example", False), ("[::1].evil", False), ("[::2]", False)])
def test_other_names_of_this_machine_are_refused(client, host, good):
    """What a browser sends when another site's name has been made to lead here."""
    response = client.get("/health", headers={"host": host})
    assert response.status_code == 200 if good else refused(response, 403)["code"] == "host_not_allowed"


def test_pages_of_other_sites(client, demo):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://[bad"):
        assert refused(client.get("/v1/models", headers={"origin": origin}), 403)["code"] == "origin_not_allowed"
    own = client.get("/v1/models", headers={"origin": "http://127.0.0.1"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    with client_of(LLaDAForCausalLM.from_pretrained(), origins=("http://app.example",), api_key="k") as open_client:
        asks = {"origin": "http://app.example", "access-control-request-method": "POST", "access-control-request-headers":
                "authorization, x-stainless-os"}
        preflight = open_client.options("/v1/completions", headers=asks)
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "http://app.example"
        assert open_client.get("/health", headers={"origin": "http://app.example"}).status_code == 200
        assert refused(open_client.get("/health", headers={"origin": "http://evil.example"}), 403)


def test_a_key(demo):
    with client_of(LLaDAForCausalLM.from_pretrained(), api_key="secret") as client:
        for header in (None, "Bearer", "Bearer wrong", "Basic secret", "secret", "Bearer secrets", "Bearer s\xe9cret"):
            headers = {} if header is None else {"authorization": header.encode("latin-1")}
            for path in ("/v1/models", "/metrics", "/v1/nothing", "//v1/models"):
                response = client.get(f"http://127.0.0.1{path}", headers=headers)
                assert refused(response, 401)["code"] == "invalid_api_key" and response.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/completions", json=PLAIN, headers=headers).status_code == 401
        for path in ("/", "/page/page.js", "/health", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/v1/models", headers={"authorization": "bearer secret"}).status_code == 200
        assert client.get("/openapi.json").json()["security"] == [{"key": []}]


def test_an_unexpected_error_is_told_to_the_log_alone(monkeypatch):
    from llada_native.server import app

    def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(app.Shapes, "whole", broken)
    with LLaDAForCausalLM.from_pretrained() as model:
        client = TestClient(create_app(model, Scheduler(model), Settings("demo")), "http://127.0.0.1", raise_server_exceptions=False)
        with client:
            response = asked(client, max_tokens=8)
            assert "secret" not in refused(response, 500)["message"] and response.headers["x-content-type-options"] == "nosniff"
            assert 'llada_http_responses_total{path="/v1/chat/completions",status="500"} 1' in client.get("/metrics").text
            with pytest.raises(RuntimeError, match="secret detail"):  # what the server around it hears, and logs
                asked(TestClient(client.app, "http://127.0.0.1"), max_tokens=8)


def test_steps_are_bounded(demo):
    """A schedule costs memory before the first pass."""
    with pytest.raises(RefusedError, match="at most 4 a token, found 64 for 8 tokens"):
        fields.chat({**CHAT, "max_tokens": 8, "steps": 64}, Settings("demo"), demo).generation(demo)
