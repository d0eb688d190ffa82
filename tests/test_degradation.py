"""Failures of the native engine, injected: what the caller gets, and what the log says."""
import json
import logging
import subprocess
import sys
from pathlib import Path

import folders
import numpy as np
import pytest

import llada_native
from llada_native import EngineError, LladaError, LLaDAForCausalLM, ModelMemoryError, NonFiniteLogitsError

PROMPT = [1, 2, 3, 4, 5]
OPTIONS = {"gen_length": 8, "block_length": 4, "max_steps": 8}


class Faulty:
    """A backend that fails at its n-th call of one method."""

    def __init__(self, backend, method, failure, after):
        self._backend, self._method, self._failure, self._left = backend, method, failure, after

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def hidden(self, *arguments):
        return self._call("hidden", *arguments)

    def head(self, *arguments):
        return self._call("head", *arguments)

    def _call(self, method, *arguments):
        if method == self._method:
            self._left -= 1
            if self._left < 0:
                if isinstance(self._failure, BaseException):
                    raise self._failure
                self._failure(arguments)
                return None
        return getattr(self._backend, method)(*arguments)


def damage(arguments):
    arguments[-1][...] = np.nan


FAILURES = {
    "kernel error in the forward": ("hidden", EngineError("kernel gemm_f32 failed"), 0, EngineError, r"forward pass \(1 request"),
    "kernel error in the third forward": ("hidden", EngineError("kernel attention_f32 failed"), 2, EngineError, "13 rows, 2 of them"),
    "allocation refused in the forward": ("hidden", MemoryError(), 0, ModelMemoryError, "an allocation was refused"),
    "kernel error in the head": ("head", EngineError("kernel widen_bf16 failed"), 0, EngineError, r"head \(4 rows, tokens 0 to 64"),
    "allocation refused in the head": ("head", MemoryError(), 3, ModelMemoryError, "head"),
    "damaged logits": ("head", damage, 1, NonFiniteLogitsError, "NaN"),
}


@pytest.fixture
def model(tiny):
    return LLaDAForCausalLM(tiny[0])


def inject(model, name):
    method, failure, after, error, message = FAILURES[name]
    model._backend = Faulty(model._backend, method, failure, after)
    return error, message


@pytest.mark.parametrize("name", FAILURES)
def test_generate_raises_and_says_where(model, name):
    error, message = inject(model, name)
    with pytest.raises(error, match=message) as info:
        model.generate(PROMPT, **OPTIONS)
    assert isinstance(info.value, LladaError) and "backend 'native'" in str(info.value)


@pytest.mark.parametrize("name", FAILURES)
def test_generate_with_cpp_model_goes_on_with_the_reference(tiny, model, name, caplog):
    error, _ = inject(model, name)
    wanted = LLaDAForCausalLM(tiny[0], backend="reference").generate(PROMPT, **OPTIONS)
    with pytest.warns(RuntimeWarning, match=f"native engine failed \\({error.__name__}.*backend='reference'"):
        found = model.generate_with_cpp_model(PROMPT, **OPTIONS)
    assert found.backend == "reference"
    assert np.array_equal(found.sequences[0], wanted.sequences[0]) and found.text == wanted.text
    [record] = caplog.records
    assert record.name == "llada_native" and record.levelno == logging.ERROR and record.exc_info
    for fact in (error.__name__, "d_model: 32", "layers: 2", "vocabulary: 64", "isa: default", "prompts: [5]", "gen_length: [8]",
                 "forward passes before", "backend='reference'"):
        assert fact in record.getMessage(), record.getMessage()


@pytest.mark.parametrize("name", FAILURES)
def test_a_placeholder_is_never_mistaken_for_a_model(model, name):
    inject(model, name)
    with pytest.warns(RuntimeWarning, match="pseudo-logits, whose output means nothing"):
        found = model.generate_with_cpp_model(PROMPT, fallback="placeholder", **OPTIONS)
    assert found.backend == "placeholder" and "placeholder" in repr(found)
    assert found.text[0].startswith("[placeholder output")


@pytest.mark.parametrize("name", FAILURES)
def test_without_a_fallback_the_error_comes(model, name):
    error, _ = inject(model, name)
    with pytest.raises(error):
        model.generate_with_cpp_model(PROMPT, fallback=None, **OPTIONS)


def test_a_second_attempt_draws_the_same_numbers(tiny, model):
    """Also without a seed: the attempt that failed has drawn some."""
    inject(model, "kernel error in the third forward")
    with pytest.warns(RuntimeWarning):
        found = model.generate_with_cpp_model(PROMPT, temperature=0.8, seed=11, **OPTIONS)
    wanted = LLaDAForCausalLM(tiny[0], backend="reference").generate(PROMPT, temperature=0.8, seed=11, **OPTIONS)
    assert np.array_equal(found.sequences[0], wanted.sequences[0])


def test_an_engine_that_works_is_left_alone(model):
    found = model.generate_with_cpp_model(PROMPT, **OPTIONS)  # warnings are errors here
    assert found.backend == "native"


def test_other_peoples_errors_are_not_the_engines(model):
    def callback(step):
        raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        model.generate_with_cpp_model(PROMPT, callback=callback, **OPTIONS)
    with pytest.raises(ValueError, match="gen_length"):
        model.generate_with_cpp_model(PROMPT, gen_length=0)
    with pytest.raises(TypeError, match="fallback"):
        model.generate_with_cpp_model(PROMPT, fallback=1)
    with pytest.raises(ValueError, match=r"fallback: expected one of 'reference', 'placeholder', found 'gpu'"):
        model.generate_with_cpp_model(PROMPT, fallback="gpu")


def test_weights_that_are_damaged_stay_an_error(tmp_path):
    """The reference finds NaN too: there is nothing to fall back on."""
    config = folders.config()
    tensors = folders.tensors(config)
    tensors["model.transformer.ln_f.weight"][0] = np.nan
    folders.write(tmp_path, config, tensors)
    with pytest.warns(RuntimeWarning), pytest.raises(NonFiniteLogitsError, match="backend 'reference'"):
        LLaDAForCausalLM(tmp_path).generate_with_cpp_model(PROMPT, **OPTIONS)


@pytest.mark.parametrize("isa", ["bogus", "neon"])
def test_a_forced_instruction_set_that_is_missing(tiny, monkeypatch, isa, caplog):
    monkeypatch.setenv("LLADA_ISA", isa)
    with pytest.raises(ValueError, match=f"LLADA_ISA.*{isa}"):
        LLaDAForCausalLM(tiny[0])
    with pytest.warns(RuntimeWarning, match=f"native engine failed.*{isa}"):
        model = LLaDAForCausalLM(tiny[0], fallback="reference")
    assert model.backend == "reference" and "d_model: 32" in caplog.records[0].getMessage()
    with pytest.warns(RuntimeWarning, match=isa):
        found = llada_native.generate_with_cpp_model(PROMPT, tiny[0], **OPTIONS)
    assert found.backend == "reference"
    monkeypatch.delenv("LLADA_ISA")
    assert np.array_equal(found.sequences[0], llada_native.generate(PROMPT, tiny[0], **OPTIONS).sequences[0])


def test_an_instruction_set_by_argument(tiny):
    with pytest.warns(RuntimeWarning, match="isa: expected one of"):
        assert LLaDAForCausalLM(tiny[0], isa="altivec", fallback="reference").backend == "reference"


REFUSED = """
import json, resource, sys, warnings
import llada_native
from llada_native import LLaDAForCausalLM
import scipy.special, llada_native.reference  # loaded before memory is short
config = dict(json.load(open(sys.argv[1])), d_model=512, mlp_hidden_size=16384, n_layers=3, max_sequence_length=4096)
model = LLaDAForCausalLM.random(config, "float32", num_threads=1)
ids = list(range(50)) * 40
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
try:
    model.generate(ids, gen_length=1)
    failed = "nothing"
except llada_native.ModelMemoryError as e:
    failed = str(e)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    found = model.generate_with_cpp_model([1, 2, 3], gen_length=2, fallback="placeholder")
    late = model.generate_with_cpp_model(ids, gen_length=1, fallback="placeholder")
print(json.dumps([failed, found.backend, late.backend, [str(w.message) for w in seen]]))
"""


@pytest.mark.resident
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_an_allocation_that_the_system_refuses(tiny):
    """A real one: the workspace of a long prompt does not fit into the address space that is left; a short one still works."""
    run = subprocess.run([sys.executable, "-c", REFUSED, str(tiny[0] / "config.json")], capture_output=True, text=True,
                         cwd=Path(llada_native.__file__).parents[1])
    assert run.returncode == 0, run.stderr
    failed, short, long, warned = json.loads(run.stdout.splitlines()[-1])
    assert "forward pass" in failed and "2001 rows" in failed and "refused" in failed
    assert (short, long) == ("native", "placeholder")
    assert len(warned) == 1 and "ModelMemoryError" in warned[0]


def test_placeholder_backend_needs_no_weights(tmp_path):
    """Wiring before the download is over: a configuration is enough. Batches and caches behave as a model's do."""
    (tmp_path / "config.json").write_text(json.dumps(folders.config()))
    model = LLaDAForCausalLM(tmp_path, backend="placeholder")
    one, two = model.generate([PROMPT, PROMPT[:3]], **OPTIONS), model.generate(PROMPT[:3], **OPTIONS)
    assert one.backend == "placeholder" and np.array_equal(one.sequences[1], two.sequences[0])
    assert np.array_equal(one.sequences[0], model.generate(PROMPT, **OPTIONS).sequences[0])
    task = llada_native.InferTask(1, PROMPT, 8, block_length=4)
    task.bind_kvcache(model.create_kv_cache())
    while not task.finished:
        task.next(model.batch_infer_one_round([task])[0])
    assert np.array_equal(task.sequence, one.sequences[0])
    assert model.memory() == {"weights": 0, "workspace": 0}
    logits = model.forward(PROMPT)
    assert logits.shape == (5, 64) and np.isfinite(logits).all() and len(np.unique(logits)) > 250


def test_placeholder_steps_say_so(demo):
    model = LLaDAForCausalLM(backend="placeholder")
    assert all(step.text[0].startswith("[placeholder output") for step in model.stream("Hello", gen_length=4))


def test_closing_during_a_fallback_ends_the_work(model, monkeypatch):
    """A reference that is loaded after close() would hold its weights for nothing."""
    inject(model, "kernel error in the forward")
    load = llada_native.model.load_backend

    def slow(*arguments):
        model._backend.close()
        return load(*arguments)

    monkeypatch.setattr(llada_native.model, "load_backend", slow)
    with pytest.warns(RuntimeWarning), pytest.raises(llada_native.GenerationCancelled):
        model.generate_with_cpp_model(PROMPT, **OPTIONS)
    assert all(backend.closed for backend in model._substitutes.values())


def test_a_signal_handlers_error_is_not_the_engines(tiny):
    """A handler that raises RuntimeError inside a forward ends the run; no other backend takes over."""
    import signal

    config = folders.config(d_model=256, n_heads=8, n_layers=4, mlp_hidden_size=2048, max_sequence_length=2048)
    slow = LLaDAForCausalLM.random(config, "float32")

    def handler(*_):
        raise RuntimeError("of the caller")

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(RuntimeError, match="of the caller") as info:
            slow.generate_with_cpp_model(list(range(50)) * 20, gen_length=256, block_length=256)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not isinstance(info.value, EngineError)


def test_the_warning_points_at_the_caller(model):
    inject(model, "kernel error in the forward")
    with pytest.warns(RuntimeWarning) as seen:
        model.generate_with_cpp_model(PROMPT, **OPTIONS)
    assert seen[0].filename == __file__
