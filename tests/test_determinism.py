"""One row alone = the same row in any batch, in any order, at any number of threads: bit for bit."""
import os
import pickle
import signal
import threading
import time

import folders
import numpy as np
import pytest
from comparisons import assert_bits_in_any_company

from llada_native import EngineError, GenerationCancelled, LLaDAForCausalLM

LENGTHS = (33, 1, 128, 64, 7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "bfloat16_fast"])
@pytest.mark.parametrize("size", [{"d_model": 32, "n_heads": 4, "n_kv_heads": 2},
                                  {"d_model": 640, "n_heads": 5, "n_kv_heads": 1, "mlp_hidden_size": 1500}])
def test_rows_are_bit_identical(isa, dtype, size):
    config = folders.config(embedding_size=300, vocab_size=300, max_sequence_length=256, **size)
    model = LLaDAForCausalLM.random(config, dtype, isa=isa, num_threads=1)
    rng = np.random.default_rng(0)
    assert_bits_in_any_company(model, [rng.integers(0, 300, n) for n in LENGTHS], (1, 2, 3, 7))


def test_many_python_threads_share_one_model(demo):
    prompts = [f"What is {i} plus {i + 3}?" for i in range(8)]
    wanted = [str(demo.generate(p, gen_length=32)) for p in prompts]
    found = [""] * 8

    def work(i):
        found[i] = str(demo.generate(prompts[i], gen_length=32))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_generates(demo):
    """The parent's workers do not exist in the child; it makes its own."""
    demo.num_threads = 2
    wanted = str(demo.generate("What is 17 plus 25?", gen_length=32))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(demo.generate("What is 17 plus 25?", gen_length=32)).encode())
        os._exit(0)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0
    assert os.read(reader, 1000).decode() == wanted
    os.close(reader)
    os.close(writer)


@pytest.fixture(scope="module")
def slow_model():
    """A second or more for a forward of 2000 rows."""
    return LLaDAForCausalLM.random(folders.config(d_model=1024, n_heads=8, n_kv_heads=8, n_layers=4, mlp_hidden_size=8192,
                                                  max_sequence_length=4096), "float32")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("waiting", [False, True], ids=["at work", "waiting for its turn"])
def test_a_signal_handler_forks(demo, slow_model, waiting):
    """In a forward, which the child cannot finish, and before one, which it can; both go on."""
    demo.num_threads = slow_model.num_threads = 2
    ids, short, children = np.ones(2000, int), np.ones(8, int), []
    wanted = demo.forward(short).tobytes()
    reader, writer = os.pipe()
    other = threading.Thread(target=slow_model.forward, args=(ids,))
    handler = signal.signal(signal.SIGALRM, lambda *_: children.append(os.fork()))
    try:
        if waiting:
            other.start()
            time.sleep(0.05)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            (demo if waiting else slow_model).forward(short if waiting else ids)
            told = b"done"
        except EngineError as e:
            told = str(e).partition(": ")[2].encode()
        if children == [0]:
            os.write(writer, told + (b", and goes on" if demo.forward(short).tobytes() == wanted else b""))
    finally:
        if children == [0]:
            os._exit(0)
        signal.signal(signal.SIGALRM, handler)
        if waiting:
            other.join()
    os.close(writer)
    assert told == b"done" and demo.forward(short).tobytes() == wanted
    found = b""
    for _ in range(100):
        if os.waitpid(children[0], os.WNOHANG)[0]:
            found = os.read(reader, 1000)
            break
        time.sleep(0.1)
    else:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
    os.close(reader)
    expected = b"done" if waiting else b"a forward pass cannot go on in a child that was forked during it"
    assert found.endswith(expected + b", and goes on"), found


def test_an_interrupt_ends_a_forward(slow_model):
    """Ctrl-C is seen within a forward, not after it; then the model works on."""
    ids = np.ones(3000, int)
    start = time.perf_counter()
    slow_model.forward(ids)
    whole = time.perf_counter() - start
    sent = []

    def interrupt():
        time.sleep(whole / 5)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        slow_model.forward(ids)
    delay = time.perf_counter() - sent[0]
    thread.join()
    assert delay < min(0.5, whole / 2), f"{delay * 1e3:.0f} ms of a forward of {whole * 1e3:.0f} ms"
    slow_model.forward([1, 2, 3])


def test_close_cancels_another_thread():
    config = folders.config(d_model=256, n_heads=8, n_layers=2, mlp_hidden_size=1024, max_sequence_length=2048)
    model = LLaDAForCausalLM.random(config, "float32")
    raised = []

    def work():
        try:
            model.generate([np.arange(40)] * 8, gen_length=1024, block_length=32)
        except GenerationCancelled as e:
            raised.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    model.close()
    thread.join(10)
    assert not thread.is_alive() and len(raised) == 1
    with pytest.raises(ValueError, match="closed"):
        model.forward([1, 2])


def test_pickle_loads_again(tiny, demo):
    model = LLaDAForCausalLM.from_pretrained(tiny[0], dtype="bfloat16", num_threads=1)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.dtype == "bfloat16" and copy.num_threads == 1
    assert np.array_equal(copy.forward([1, 2, 3]), model.forward([1, 2, 3]))
    random = LLaDAForCausalLM.random(folders.config(), "float32", 5, num_threads=1)
    assert np.array_equal(pickle.loads(pickle.dumps(random)).forward([1, 2]), random.forward([1, 2]))
    assert str(pickle.loads(pickle.dumps(demo)).generate("Hello!")) == str(demo.generate("Hello!"))
