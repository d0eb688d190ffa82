"""A real server on the loopback interface: OpenAI's own client, many clients at once, clients who leave, dawdle or push."""
from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import backends
import openai
import pytest
import servers

from llada_native import EngineError, LLaDAForCausalLM, cli

PROMPT = "Sort these numbers: 31, 7, 52, 12."
ANSWER = "7, 12, 31, 52"
MESSAGES = [{"role": "user", "content": PROMPT}]
PLAIN = {"model": "demo", "prompt": PROMPT, "max_tokens": 8}
LONG = {"model": "demo", "messages": MESSAGES, "max_tokens": 256, "block_length": 256, "early_stop": False}


@pytest.fixture(scope="module")
def server():
    with LLaDAForCausalLM.from_pretrained() as model, servers.running(model, max_waiting=256) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=servers.PATIENCE) as client:
        yield client


@pytest.fixture
def gated():
    """A server whose passes wait for the test, and its gate."""
    with LLaDAForCausalLM.from_pretrained() as model:
        model._backend = gate = backends.Gate(model._backend)
        with servers.running(model, max_requests=1, max_waiting=1, grace=0.5, deadline=servers.PATIENCE) as server:
            yield server, gate
            gate.unlock()


# ---- OpenAI's client

def test_chat(client):
    found = client.chat.completions.create(model="demo", messages=MESSAGES, seed=1)
    assert found.choices[0].message.content == ANSWER and found.choices[0].finish_reason == "stop"
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.model_extra["llada"]["forward_passes"] > 0


def test_completion(client, demo):
    found = client.completions.create(model="demo", prompt=["What is 17 plus 25?", PROMPT], max_tokens=32)
    assert [c.text for c in found.choices] == demo.generate(["What is 17 plus 25?", PROMPT], chat=False, gen_length=32).text


def test_streams(client):
    said = list(client.chat.completions.create(model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in said if c.choices) == ANSWER
    assert said[-1].usage.completion_tokens > 0 and [c.choices[0].finish_reason for c in said if c.choices][-1] == "stop"
    text = "".join(c.choices[0].text for c in client.completions.create(model="demo", prompt=PROMPT, stream=True, max_tokens=32))
    assert text == client.completions.create(model="demo", prompt=PROMPT, max_tokens=32).choices[0].text


def test_stop_logprobs_and_n(client, demo):
    found = client.chat.completions.create(model="demo", messages=MESSAGES, stop=[", 3"], logprobs=True)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("7, 12", "stop")
    assert "".join(t.token for t in found.choices[0].logprobs.content).startswith("7, 12, 3")
    several = client.chat.completions.create(model="demo", messages=MESSAGES, n=3, temperature=1.0, seed=4)
    assert [c.message.content for c in several.choices] == demo.generate([PROMPT] * 3, temperature=1.0, seed=4).text


def test_extension_fields(client, demo):
    found = client.chat.completions.create(model="demo", messages=MESSAGES, max_completion_tokens=32, extra_body={
        "steps": 16, "block_length": 16, "cfg_scale": 1.0, "selector": "threshold:tau=0.9"})
    assert found.choices[0].message.content == demo.generate(PROMPT, gen_length=32, max_steps=16, block_length=16, cfg_scale=1.0,
                                                             selector="threshold:tau=0.9").text[0]
    drafted = list(client.chat.completions.create(model="demo", messages=MESSAGES, stream=True, extra_body={"drafts": True}))
    assert any("draft" in c.choices[0].model_extra for c in drafted)


def test_models(client):
    assert [m.id for m in client.models.list()] == ["demo"] and client.models.retrieve("demo").owned_by == "llada-native"


@pytest.mark.parametrize(("error", "change"), [
    (openai.BadRequestError, {"max_tokens": -5}), (openai.BadRequestError, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    (openai.BadRequestError, {"presence_penalty": 1.0}), (openai.NotFoundError, {"model": "gpt-4"}),
    (openai.BadRequestError, {"response_format": {"type": "json_object"}}), (openai.BadRequestError, {"max_tokens": 5000})])
def test_errors(client, error, change):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "demo", "messages": MESSAGES, **change})
    assert caught.value.param in (*change, "gen_length") and caught.value.body["message"].partition(":")[0] in (*change, "gen_length")


def test_a_key():
    with LLaDAForCausalLM.from_pretrained() as model, servers.running(model, api_key="secret") as server:
        for key, error in (("wrong", openai.AuthenticationError), ("secret", None)):
            with openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0) as client, \
                    pytest.raises(error) if error else contextlib.nullcontext():
                client.completions.create(**PLAIN)


# ---- many

def test_concurrent_clients_get_what_they_get_alone(server, demo):
    """16 clients with different methods and seeds; every answer is that of the same request alone."""
    kinds = [{}, {"temperature": 0.9}, {"preset": "fast"}, {"cfg_scale": 1.0}, {"selector": "threshold"}, {"editor": "wino"},
             {"remasking": "random", "steps": 16}, {"block_length": 8}]
    prompts = [PROMPT, "What is 17 plus 25?"]
    alone = {(k, p, seed): demo.generate(prompts[p], gen_length=32, seed=seed, **kinds[k]).text[0]
             for k in range(len(kinds)) for p in range(2) for seed in range(2)}
    wrong = []

    def ask(number):
        for i in range(4):
            k, p, seed = (number + 3 * i) % len(kinds), number % 2, i % 2
            body = {"model": "demo", "messages": [{"role": "user", "content": prompts[p]}], "max_tokens": 32, "seed": seed, **kinds[k]}
            status, _, data = server.ask("POST", "/v1/chat/completions", body, timeout=servers.PATIENCE)
            found = json.loads(data)["choices"][0]["message"]["content"] if status == 200 else status
            if found != alone[k, p, seed]:
                wrong.append((number, i, found, alone[k, p, seed]))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_full_queue(gated):
    """One runs, one waits, the third is told when to come again."""
    server, gate = gated
    gate.open = False
    with server.connect() as first, server.connect() as second:
        first.sendall(servers.raw("POST", "/v1/completions", PLAIN))
        gate.arrive()
        second.sendall(servers.raw("POST", "/v1/completions", PLAIN))
        until(lambda: server.scheduler.waiting == 1)
        status, headers, body = server.ask("POST", "/v1/completions", PLAIN)
        assert status == 429 and 1 <= int(headers["retry-after"]) <= 60 and json.loads(body)["error"]["code"] == "queue_full"
        assert server.ask("GET", "/health")[0] == 200
        gate.unlock()
        assert [servers.answer(c)[0] for c in (first, second)] == [200, 200]


# ---- clients who leave

@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_ends_the_work_within_one_pass(gated, stream):
    server, gate = gated
    gate.open = False
    connection = server.connect()
    connection.sendall(servers.raw("POST", "/v1/chat/completions", {**LONG, "stream": stream}))
    gate.arrive()
    gate.let(3)
    for _ in range(3):
        gate.arrive()
    connection.close()
    until(lambda: server.scheduler._running[0].cancelled)
    gate.unlock()
    until(lambda: server.scheduler.counts["cancelled"] == 1)
    assert len(gate.passes) == 4  # three, and the one that was under way
    until(lambda: server.connections == 0)


def test_a_disconnect_while_waiting(gated):
    server, gate = gated
    gate.open = False
    with server.connect() as first:
        first.sendall(servers.raw("POST", "/v1/completions", PLAIN))
        gate.arrive()
        with server.connect() as second:
            second.sendall(servers.raw("POST", "/v1/completions", PLAIN))
            until(lambda: server.scheduler.waiting == 1)
        until(lambda: server.scheduler.waiting == 0)
        gate.unlock()
        assert servers.answer(first)[0] == 200


@pytest.mark.parametrize("own", [True, False])
def test_a_deadline(own):
    """The request's own, or the server's."""
    with LLaDAForCausalLM.from_pretrained() as model:
        model._backend = gate = backends.Gate(model._backend)
        with servers.running(model, deadline=servers.PATIENCE if own else 0.05) as server, server.connect() as connection:
            gate.open = False
            connection.sendall(servers.raw("POST", "/v1/completions", {**PLAIN, **({"timeout": 0.05} if own else {})}))
            gate.arrive()
            time.sleep(0.06)
            gate.unlock()
            status, _, body = servers.answer(connection)
            assert status == (408 if own else 504) and json.loads(body)["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_failure(gated, stream):
    """The request is told, and the next one answered."""
    server, gate = gated
    gate.failure = EngineError("kernel gemm_f32 failed")
    status, _, body = server.ask("POST", "/v1/completions", {**PLAIN, "stream": stream})
    if stream:
        assert status == 200
        body = body.partition(b"data: ")[2].partition(b"\n\n")[0]
    else:
        assert status == 503
    error = json.loads(body)["error"]
    assert error["code"] == "engine_failed" and "kernel gemm_f32 failed" in error["message"]
    assert server.ask("POST", "/v1/completions", PLAIN)[0] == 200
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        gate.failure = EngineError("kernel gemm_f32 failed")
        with pytest.raises(openai.APIError, match="kernel gemm_f32 failed"):
            list(client.completions.create(**PLAIN, stream=stream))


# ---- clients who dawdle or push

@pytest.fixture(scope="module")
def impatient():
    """A server with short clocks."""
    with LLaDAForCausalLM.from_pretrained() as model, servers.running(
            model, head_seconds=0.3, body_seconds=0.3, idle_seconds=1, stall_seconds=0.3, connections=32, send_buffer=8192) as server:
        yield server


HEAD = servers.raw("POST", "/v1/completions", PLAIN, {"Connection": "keep-alive"})


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD[:60]], ids=["nothing", "a line", "headers"])
def test_half_a_head(impatient, sent):
    with impatient.connect() as connection:
        connection.sendall(sent)
        assert gone(connection)
    until(lambda: impatient.connections == 0)


def test_half_a_body(impatient):
    with impatient.connect() as connection:
        connection.sendall(HEAD[:-10])
        status, headers, body = servers.answer(connection)
        assert status == 408 and json.loads(body)["error"]["code"] == "timeout" and headers["connection"] == "close"


@pytest.mark.parametrize("expects", [{}, {"Expect": "100-continue"}])
def test_a_body_that_is_told_to_be_large(server, expects):
    """It is not waited for, nor asked for."""
    with server.connect() as connection:
        connection.sendall(servers.raw("POST", "/v1/completions", b"{", {"Content-Length": 99999999999, **expects}))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_half_a_second_head(impatient):
    """The clock of a connection starts again with each request."""
    with impatient.connect() as connection:
        connection.sendall(servers.raw("GET", "/health", headers={"Connection": "keep-alive"}))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /hea")
        assert gone(connection)


def test_a_body_that_nobody_waits_for(impatient):
    """Refused by its head; a rest that trickles in does not hold the connection."""
    with impatient.connect() as connection:
        connection.sendall(servers.raw("POST", "/v1/nothing", b"", {"Connection": "keep-alive", "Content-Length": 100000}))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"x")
                time.sleep(0.01)
        assert gone(connection)


def test_a_connection_that_idles(impatient):
    with impatient.connect() as connection:
        connection.sendall(servers.raw("GET", "/health", headers={"Connection": "keep-alive"}))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert gone(connection)


def test_a_reader_who_does_not_read(impatient):
    """Its answer does not pile up, and its work ends."""
    before = impatient.scheduler.counts["cancelled"]
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", impatient.port))
        body = {**LONG, "stream": True, "drafts": True}
        connection.sendall(servers.raw("POST", "/v1/chat/completions", body))
        until(lambda: impatient.scheduler.counts["cancelled"] == before + 1)
    until(lambda: impatient.connections == 0)


def test_a_crowd_is_thinned_out():
    """Beyond the limit, those who have waited longest without a request go; healthy requests pass."""
    with LLaDAForCausalLM.from_pretrained() as model, servers.running(model, connections=32, head_seconds=servers.PATIENCE) as server:
        crowd = [server.connect() for _ in range(64)]
        try:
            assert server.ask("GET", "/health")[0] == 200
            until(lambda: server.connections <= 32)
            assert all(gone(connection) for connection in crowd[:32])
        finally:
            for connection in crowd:
                connection.close()


def test_healthy_clients_among_half_open_connections(server):
    """300 of them, and none disturbs a request."""
    crowd = [server.connect() for _ in range(300)]
    try:
        for i, connection in enumerate(crowd):
            connection.sendall(HEAD[:i % len(HEAD)])
        for _ in range(5):
            assert server.ask("POST", "/v1/completions", PLAIN)[0] == 200
    finally:
        for connection in crowd:
            connection.close()


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5000, b"NONSENSE\r\n\r\n",
                                  b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
                                  servers.raw("POST", "/v1/completions", b"x", {"Transfer-Encoding": "chunked"}),
                                  servers.raw("GET", "/", headers={"Upgrade": "websocket", "Connection": "upgrade"})],
                         ids=["tls", "headers", "nonsense", "null", "smuggling", "websocket"])
def test_what_is_not_http(impatient, sent):
    with impatient.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        assert gone(connection)
    assert impatient.ask("GET", "/health")[0] == 200


def test_bodies_share_a_limit():
    """Two that are being read fill it; the third is refused."""
    with LLaDAForCausalLM.from_pretrained() as model, servers.running(model, body_bytes=1000, bodies_bytes=1500) as server, \
            server.connect() as slow:
        slow.sendall(servers.raw("POST", "/v1/completions", b"{" + b" " * 899, {"Content-Length": 1000}))
        time.sleep(0.3)
        large = b" " * 700 + json.dumps(PLAIN).encode()
        status, headers, _ = server.ask("POST", "/v1/completions", large)
        assert status == 429 and headers["retry-after"] == "1"
        slow.close()
        until(lambda: server.ask("POST", "/v1/completions", large)[0] == 200)


# ---- the command

@contextlib.contextmanager
def command(*arguments, **environment):
    with subprocess.Popen([sys.executable, "-m", "llada_native", "serve", "--port", "0", *arguments], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
                          cwd=tempfile.gettempdir()) as process:
        try:
            yield process
        finally:
            process.kill()


def port_of(process):
    line = process.stdout.readline()
    assert line.startswith("llada-native: demo on http://127.0.0.1:"), line
    return int(line.rpartition(":")[2])


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_with_grace(number):
    """A signal in the middle of an answer: the answer comes, then the process ends, well."""
    with command() as process:
        port = port_of(process)
        with socket.create_connection(("127.0.0.1", port), timeout=servers.PATIENCE) as connection:
            body = {**LONG, "max_tokens": 64, "block_length": 64, "stream": True}
            connection.sendall(servers.raw("POST", "/v1/chat/completions", body))
            assert connection.recv(1)
            process.send_signal(number)
            rest = b""
            while part := connection.recv(1 << 16):
                rest += part
        assert b"data: [DONE]" in rest
        printed, logged = process.communicate(timeout=servers.PATIENCE)
        assert process.returncode == 0 and printed == "" and logged == ""


def test_the_command_has_a_key(tmp_path):
    (tmp_path / "key").write_text("secret\n")
    for running in (command("--api-key-file", str(tmp_path / "key")), command(LLADA_API_KEY="secret")):
        with running as process:
            address = f"http://127.0.0.1:{port_of(process)}/v1"
            with openai.OpenAI(base_url=address, api_key="secret", max_retries=0) as client:
                assert client.models.list().data[0].id == "demo"
            with openai.OpenAI(base_url=address, api_key="x", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
                client.models.list()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--port", "70000"], "--port: expected 0 to 65535, found 70000"), (["--host", "203.0.113.7"], "203.0.113.7:8000: cannot listen there"),
    (["--max-requests", "0"], "--max-requests: expected 1"),
    (["--deadline", "nan"], "--deadline: expected a number from 0.001 to 1e+06, found nan"),
    (["--allow-host", "llada.example:80"], "--allow-host: expected a name without a port"),
    (["--allow-host", "::1"], "an IPv6 address in brackets"), (["--allow-host", ""], "--allow-host: expected a name"),
    (["--cors-origin", "app.example"], "--cors-origin: expected one like https://app.example.org, or *, found 'app.example'"),
    (["--cors-origin", "https://app.example/"], "--cors-origin: expected one like"),
    (["--api-key-file", sys.executable], f"{sys.executable}: expected a key of visible ASCII characters"),
    (["--api-key-file", "/nowhere"], "/nowhere"), (["--model", "/nowhere", "--port", "0"], "/nowhere"),
    (["--preset", "speed", "--port", "0"], "preset: expected one of 'reference', 'balanced', 'fast', found 'speed'")])
def test_the_command_refuses(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("llada_native.server.command.serve", lambda *_: None)
    assert cli.main(["serve", *arguments]) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of the machine")
def test_the_address_that_it_listens_on_is_admitted():
    with command("--host", "127.0.0.2") as process:
        port = int(process.stdout.readline().rpartition(":")[2])
        for host, status in ((f"127.0.0.2:{port}", 200), (f"localhost:{port}", 200), ("evil.example", 403)):
            with socket.create_connection(("127.0.0.2", port), timeout=servers.PATIENCE) as connection:
                connection.sendall(servers.raw("GET", "/health", headers={"Host": host}))
                assert servers.answer(connection)[0] == status


def test_an_address_that_stdout_has_no_bytes_for():
    """Of a model whose name is more than ASCII."""
    with command("--model-name", "模型", PYTHONIOENCODING="ascii") as process:
        assert process.stdout.readline().startswith("llada-native: \\u6a21\\u578b on http://127.0.0.1:")


@pytest.mark.parametrize("key", ["", "two words", "schl\xfcssel", "a\nb"])
def test_keys_are_checked(capsys, monkeypatch, key):
    monkeypatch.setenv("LLADA_API_KEY", key)
    assert cli.main(["serve", "--port", "0"]) in (1, 2)
    assert "LLADA_API_KEY: expected a key of visible ASCII characters" in capsys.readouterr().err


def test_without_the_packages(capsys, monkeypatch):
    from llada_native.server import command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert cli.main(["serve"]) == 1
    assert "pip install 'llada-native[server]'" in capsys.readouterr().err


def test_the_help_has_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["serve", "--help"])
    printed = capsys.readouterr().out
    assert "llada-native serve --model" in printed and "--allow-host" in printed


def until(condition):
    deadline = time.monotonic() + servers.PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def gone(connection):
    """Whether the server closes it, whatever it says before."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return True
