"""Shared fixtures: every build of the kernels that this processor runs, and tiny random checkpoints."""
import os
import signal

import folders
import pytest
import rounds

import llada_native

os.environ.setdefault("MPLBACKEND", "agg")  # plots need no window
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs, and children inherit it

ISAS = [name for name, supported in llada_native.cpu_info()["isas"].items() if supported]


@pytest.fixture(params=ISAS)
def isa(request):
    return request.param


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(folder, config, tensors) of a small random model with grouped-query attention."""
    config = folders.config(n_kv_heads=2)
    tensors = folders.tensors(config)
    folder = tmp_path_factory.mktemp("tiny")
    folders.write(folder, config, tensors)
    return folder, config, tensors


@pytest.fixture(scope="session")
def demo():
    return llada_native.LLaDAForCausalLM.from_pretrained()


@pytest.fixture
def spied(monkeypatch):
    """Puts a `rounds.Spy` between a model and its backend."""
    def put(model):
        spy = rounds.Spy(model._backend)
        monkeypatch.setattr(model, "_backend", spy)
        return spy
    return put
