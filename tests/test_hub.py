"""Repositories of the Hugging Face hub, from a hub of this process: an HTTP server with the part of the API that downloads use."""
from __future__ import annotations

import json
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import folders
import gguf_files
import numpy as np
import pytest
from hubs import COMMITS, Hub

import llada_native
from llada_native import HubError, LLaDAForCausalLM, MissingPackageError, ModelFormatError, cli, convert, generate, hub

DEMO = Path(llada_native.__file__).parent / "demo"
REPOSITORY = "organization/model"


@pytest.fixture(scope="module")
def running():
    """One for all tests: modules of the library keep the first address that they see."""
    found = Hub()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    """A hub with the demo model, and a cache of its own. The library reads its environment once, so what it read is replaced."""
    from huggingface_hub import constants

    found = running
    found.clear()
    monkeypatch.setattr(constants, "ENDPOINT", found.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "TIMEOUT", 5)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    found.publish(REPOSITORY, DEMO)
    return found


@pytest.fixture
def offline(monkeypatch):
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def unreachable(monkeypatch):
    """An address where nobody answers."""
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)


PROMPT, ANSWER = "Sort these numbers: 31, 7, 52, 12.", "7, 12, 31, 52"


def test_a_repository_by_its_name(server, demo):
    with LLaDAForCausalLM.from_pretrained(REPOSITORY) as model:
        assert model.generate(PROMPT).text == [ANSWER] and model.revision == COMMITS[0]
    assert server.fetched() == sorted(path.name for path in DEMO.iterdir() if path.suffix != ".py" and path.is_file())
    assert demo.revision is None
    assert generate(PROMPT, REPOSITORY).text == [ANSWER]


def test_what_is_there_is_not_fetched_again(server):
    hub.locate(REPOSITORY)
    server.requests.clear()
    hub.locate(REPOSITORY)
    assert server.fetched() == []


def test_only_what_a_model_is_read_from(server, tmp_path):
    more = {"README.md": b"#", "pytorch_model.bin": b"0" * 100, "modeling_llada.py": b"raise SystemExit", "onnx/model.safetensors": b"0",
            "vocab.json": b"{ }", "merges.txt": b"#version: 0.2", "added_tokens.json": b"{  }", "chat_template.jinja": b"a template",
            "generation_config.json": b"{}", "model.gguf": b"GGUF"}
    server.publish(REPOSITORY, DEMO, more=more)
    place = hub.locate(REPOSITORY)
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
              "added_tokens.json", "chat_template.jinja", "generation_config.json"}
    assert {str(path.relative_to(place.path)) for path in place.path.rglob("*")} == wanted == set(server.fetched())
    assert place.path.is_relative_to(tmp_path / "cache")


def test_shards_and_their_index(server, tmp_path):
    c = folders.config()
    folder = folders.write(tmp_path / "sharded", c, folders.tensors(c), shards=3)
    server.publish("organization/sharded", folder)
    with LLaDAForCausalLM("organization/sharded") as model:
        assert np.array_equal(model.forward([1, 2, 3]), LLaDAForCausalLM(folder).forward([1, 2, 3]))


@pytest.fixture
def two_commits(server, tmp_path):
    """main and the tag v1 are different weights."""
    c = folders.config()
    parts = [folders.write(tmp_path / str(seed), c, folders.tensors(c, seed)) for seed in (0, 1)]
    for folder, commit, refs in zip(parts, COMMITS, (["v1", "refs/pr/1"], ["main"]), strict=True):
        server.publish("organization/two", folder, commit, refs)
    return [LLaDAForCausalLM(folder).forward([1, 2, 3]) for folder in parts]


@pytest.mark.parametrize(("revision", "which"), [(None, 1), ("main", 1), ("v1", 0), (COMMITS[0], 0), (COMMITS[1], 1)])
def test_revisions(two_commits, revision, which, caplog):
    with caplog.at_level(logging.INFO, "llada_native"):
        model = LLaDAForCausalLM("organization/two", revision=revision)
    assert np.array_equal(model.forward([1, 2, 3]), two_commits[which])
    assert model.revision == COMMITS[which]
    assert f"organization/two: revision {revision or 'main'} is commit {COMMITS[which]}" in caplog.text


def test_a_pickle_keeps_the_commit(server, two_commits):
    """Whatever main has become."""
    data = pickle.dumps(LLaDAForCausalLM("organization/two", revision="v1"))
    server.refs["organization/two"]["v1"] = COMMITS[1]
    model = pickle.loads(data)
    assert model.revision == COMMITS[0] and np.array_equal(model.forward([1, 2, 3]), two_commits[0])


def test_main_moves_on(server, two_commits):
    hub.locate("organization/two")
    server.refs["organization/two"]["main"] = COMMITS[0]
    assert LLaDAForCausalLM("organization/two").revision == COMMITS[0]


def test_convert(two_commits, tmp_path):
    out = convert("organization/two", tmp_path / "out", revision="v1")
    with LLaDAForCausalLM(out) as model:
        assert np.array_equal(model.forward([1, 2, 3]), two_commits[0])
        assert model.revision == COMMITS[0]
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded.revision == COMMITS[0]


def test_the_command_line(two_commits, server, tmp_path, capsys):
    assert cli.main(["info", "--model", "organization/two", "--revision", "v1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["revision"] == COMMITS[0]
    assert cli.main(["generate", "--model", REPOSITORY, PROMPT]) == 0
    assert capsys.readouterr() == (ANSWER + "\n", "")  # no bars where there is no terminal
    assert cli.main(["convert", "organization/two", str(tmp_path / "out"), "--revision", "v1"]) == 0
    assert cli.main(["info", "--model", str(tmp_path / "out")]) == 0
    assert f"revision: {COMMITS[0]}" in capsys.readouterr().out
    assert cli.main(["generate", "--model", "organization/none", PROMPT]) == 1
    assert capsys.readouterr().err.startswith("llada-native: organization/none: expected a path on this machine or a repository")


def test_the_environment_names_the_hub(server, tmp_path):
    """As a user has it: another process, and the variables of huggingface_hub."""
    environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
                   "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    command = [sys.executable, "-m", "llada_native", "generate", "--model", REPOSITORY, PROMPT]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (out.returncode, out.stdout) == (0, ANSWER + "\n"), out.stderr
    server.requests.clear()
    out = subprocess.run(command, env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, cwd=tmp_path)
    assert (out.returncode, out.stdout, out.stderr) == (0, ANSWER + "\n", "") and not server.requests


# ---- without a network

def test_offline(server, two_commits, offline):
    hub.locate("organization/two", "v1")
    offline()
    server.requests.clear()
    assert LLaDAForCausalLM("organization/two", revision="v1").revision == COMMITS[0]
    assert LLaDAForCausalLM("organization/two", revision=COMMITS[0]).revision == COMMITS[0]
    for name, revision in (("organization/two", "main"), (REPOSITORY, "main")):
        message = (f"{name}: no such path on this machine; expected the hub's answer, or all files of revision '{revision}' of a "
                   "repository of this name in the cache, found neither: "
                   "HF_HUB_OFFLINE forbids to ask the hub")
        with pytest.raises(HubError, match=re.escape(message)):
            LLaDAForCausalLM(name, revision=revision)
    assert not server.requests


@pytest.mark.parametrize("how", ["nobody answers", "an error of the server"])
def test_a_hub_out_of_reach(server, how, monkeypatch):
    """What the cache has is used, and the line that asked for it is told."""
    hub.locate(REPOSITORY)

    def break_down():
        if how == "nobody answers":
            unreachable(monkeypatch)
        else:
            server.state = 503

    break_down()
    with pytest.warns(RuntimeWarning, match=f"{REPOSITORY}: the hub is out of reach .*; going on with commit {COMMITS[0]} in the cache"
                      ) as caught:
        model = LLaDAForCausalLM(REPOSITORY)
    assert model.generate(PROMPT).text == [ANSWER] and caught[0].filename == __file__
    with pytest.raises(HubError, match=r"organization/other: no such path on this machine; expected the hub's answer, or all files of "
                       r"revision 'main' of a repository of this name in the cache, found neither: the hub is out of reach \(\w+: "):
        LLaDAForCausalLM("organization/other")


def test_a_download_that_stops(server, monkeypatch):
    """The next one goes on."""
    send = Hub.send

    def cut(self, request, status, body, headers):
        if request.command == "GET" and request.path.endswith("model.safetensors"):
            request.close_connection = True
            return send(self, request, 500, b"", {})
        return send(self, request, status, body, headers)

    monkeypatch.setattr(Hub, "send", cut)
    with pytest.raises(HubError, match=f"{REPOSITORY}: the download stopped"):
        LLaDAForCausalLM(REPOSITORY)
    monkeypatch.setattr(Hub, "send", send)
    server.requests.clear()
    assert LLaDAForCausalLM(REPOSITORY).generate(PROMPT).text == [ANSWER]
    assert server.fetched() == ["model.safetensors"]


# ---- GGUF files of a repository

@pytest.fixture
def gguf_repository(server, tmp_path):
    folder = tmp_path / "files"
    (folder / "quants").mkdir(parents=True)
    for name in ("a.F32.gguf", "quants/b [1].gguf"):
        path, _ = gguf_files.pair(tmp_path, "F32")
        (folder / name).write_bytes(path.read_bytes())
    server.publish("organization/files", folder)
    return folder


@pytest.mark.parametrize("file", ["a.F32.gguf", "quants/b [1].gguf"])
def test_one_gguf_file(server, gguf_repository, file, tmp_path):
    with LLaDAForCausalLM(f"organization/files:{file}") as model:
        assert np.array_equal(model.forward([1, 2]), LLaDAForCausalLM(gguf_repository / file).forward([1, 2]))
        assert model.revision == COMMITS[0]
    assert server.fetched() == [file]
    assert LLaDAForCausalLM(convert(f"organization/files:{file}", tmp_path / "out")).revision == COMMITS[0]


def test_all_parts_of_a_divided_file(server, tmp_path):
    names = [f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    (tmp_path / "parts").mkdir()
    server.publish("organization/parts", tmp_path / "parts", more=dict.fromkeys([*names, "m-00001-of-00002.gguf", "n.gguf"], b"GGUF"))
    place = hub.locate(f"organization/parts:{names[0]}")
    assert sorted(path.name for path in place.path.parent.iterdir()) == names and place.path.name == names[0]


def test_a_gguf_file_that_is_not_there(server, gguf_repository, offline):
    message = ("organization/files: expected c.gguf in revision 'main', found 2 other file(s); a GGUF file of it is named like "
               "'organization/files:a.F32.gguf'; there are a.F32.gguf, quants/b [1].gguf")
    with pytest.raises(HubError, match=re.escape(message)):
        LLaDAForCausalLM("organization/files:c.gguf")
    LLaDAForCausalLM("organization/files:a.F32.gguf")
    offline()
    LLaDAForCausalLM("organization/files:a.F32.gguf")
    with pytest.raises(HubError, match=r"organization/files: expected .* in the cache"):
        LLaDAForCausalLM("organization/files:c.gguf")


def test_a_repository_of_gguf_files(gguf_repository):
    with pytest.raises(HubError, match=re.escape("organization/files: expected config.json in revision 'main', found 2 other file(s); a "
                                                 "GGUF file of it is named like 'organization/files:a.F32.gguf'")):
        LLaDAForCausalLM("organization/files")


# ---- what is no repository

def test_a_path_comes_first(server):
    """Even one that looks like a repository, and never a `Path`."""
    c = folders.config()
    folders.write(Path("organization/model"), c, folders.tensors(c))
    with LLaDAForCausalLM(REPOSITORY) as model:
        assert model.revision is None and model.config.d_model == 32
    with pytest.raises(ValueError, match="revision: is for repositories of the Hugging Face hub, and organization/model is a path"):
        LLaDAForCausalLM(REPOSITORY, revision="main")
    with pytest.raises(ModelFormatError, match="other/model: expected a checkpoint folder or a GGUF file on this machine, found nothing"):
        LLaDAForCausalLM(Path("other/model"))
    with pytest.raises(ValueError, match="revision: is for repositories"):
        LLaDAForCausalLM(revision="main")
    assert not server.requests


@pytest.mark.parametrize("name", ["", "model", "./model", "/absolute/model", "path/to/model", "organization/", "-a/b", "a:b.gguf",
                                  "organization/model name", "organization/mödel", "a/b\n", "https://huggingface.co/a/b", "a\0/b",
                                  "~a\0b/x", "~\ud800/x"])
def test_names_that_nothing_can_have(server, name):
    message = ": expected a folder or GGUF file on this machine, or a repository of the Hugging Face hub as 'organization/name'"
    with pytest.raises(ModelFormatError, match=message):
        LLaDAForCausalLM(name)
    with pytest.raises(ModelFormatError, match=message):
        convert(name, "out")
    assert not server.requests


@pytest.mark.parametrize("file", ["", "Q4_K_M", "/model.gguf", "../model.gguf", "a/../../model.gguf", "model.safetensors"])
def test_names_of_files_that_are_no_gguf(server, file):
    with pytest.raises(ModelFormatError, match=re.escape(f"expected the name of a GGUF file after the colon, found {file!r}")):
        LLaDAForCausalLM(f"{REPOSITORY}:{file}")
    assert not server.requests


@pytest.mark.parametrize("name", ["a--b/c", "a/b.git", "a/b..c", "a/" + "b" * 100, "a/b."])
def test_names_that_the_library_refuses(server, name):
    with pytest.raises(ModelFormatError, match="expected a path on this machine or the name of a repository, found neither: "):
        LLaDAForCausalLM(name)


@pytest.mark.parametrize(("revision", "error"), [(1, TypeError), (b"main", TypeError), ("", ValueError), ("a b", ValueError),
                                                 ("../../x", ValueError), ("/etc/passwd", ValueError), ("a\nb", ValueError)])
def test_revisions_that_are_none(server, revision, error):
    with pytest.raises(error, match="revision: expected a branch, tag or commit, found "):
        LLaDAForCausalLM(REPOSITORY, revision=revision)
    assert not server.requests


def test_a_repository_that_is_not_there(server):
    message = ("organization/none: expected a path on this machine or a repository of the Hugging Face hub, found neither; for a private "
               "one set HF_TOKEN")
    with pytest.raises(HubError, match=re.escape(message)):
        LLaDAForCausalLM("organization/none")


def test_a_revision_that_is_not_there(server):
    with pytest.raises(HubError, match=f"{REPOSITORY}: expected a branch, tag or commit of the repository, found revision 'v9'"):
        LLaDAForCausalLM(REPOSITORY, revision="v9")


def test_a_gated_repository(server):
    server.gated.add(REPOSITORY)
    with pytest.raises(HubError, match=f"{REPOSITORY}: the repository is gated: accept its conditions on the hub, and set HF_TOKEN"):
        LLaDAForCausalLM(REPOSITORY)


def test_without_the_package(monkeypatch, tmp_path, tiny):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=re.escape(
            "organization/model: no such path on this machine; repositories of the Hugging Face hub need the package huggingface_hub: "
            "pip install 'llada-native[hub]'")):
        LLaDAForCausalLM(REPOSITORY)
    assert LLaDAForCausalLM(str(tiny[0])).revision is None


def test_the_package_does_not_import_huggingface_hub():
    code = "import sys, llada_native; llada_native.LLaDAForCausalLM(); sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=llada_native.__path__[0] + "/..").returncode == 0
