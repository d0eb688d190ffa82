"""Batches of a small model, whose parts threads run side by side, each with requests of its own: the same bits as alone."""
import folders
import interrupts
import llada2
import moe
import numpy as np
import pytest

from llada_native import LLaDAForCausalLM

LENGTHS = (70, 66, 100, 64, 31, 90, 80, 1)  # with two threads: parts of 64 rows or more
VOCABULARY = 64


def integers(*values):
    return np.array(values, np.int32)


def dense():
    return folders.config(embedding_size=VOCABULARY, vocab_size=VOCABULARY, n_kv_heads=2, max_sequence_length=256)


FAMILIES = {"dense": dense, "experts": moe.config, "block-causal": llada2.config}


@pytest.fixture(params=FAMILIES)
def model(request):
    config = FAMILIES[request.param]()
    return LLaDAForCausalLM.random(config, "int8" if request.param == "dense" else "float32")


def requests_of(model, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, model.config.vocabulary, n).astype(np.int32) for n in LENGTHS]


def hidden(model, requests, rows=None, **arguments):
    tokens = np.concatenate(requests)
    return model._backend.hidden(tokens, integers(*map(len, requests)),
                                 np.arange(len(tokens), dtype=np.int32) if rows is None else rows, **arguments)


def test_every_row_alone(model):
    requests = requests_of(model)
    model.num_threads = 1
    alone = [hidden(model, [ids]) for ids in requests]
    for threads in (1, 2, 3):
        model.num_threads = threads
        for order in (range(8), (7, 2, 4, 0, 6, 1, 5, 3)):
            found = np.split(hidden(model, [requests[i] for i in order]), np.cumsum([LENGTHS[i] for i in order])[:-1])
            for i, rows in zip(order, found, strict=True):
                assert np.array_equal(rows, alone[i]), f"request {i}, {threads} threads, order {list(order)}"


def test_selected_rows(model):
    """None of some requests, all of others."""
    requests = requests_of(model)
    model.num_threads = 2
    everything = hidden(model, requests)
    begins = np.cumsum((0, *LENGTHS))
    whole = np.arange(begins[2], begins[3], dtype=np.int32)
    for rows in (integers(0), integers(begins[-1] - 1), whole, integers(3, *whole, begins[5], begins[5] + 1), integers()):
        assert np.array_equal(hidden(model, requests, rows), everything[rows])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_caches(model, dtype):
    """Some requests with a cache, some without, at positions within it."""
    requests = requests_of(model)

    def run(threads, together):
        model.num_threads = threads
        caches = [model._backend.create_kv_cache(dtype) if i % 3 else None for i in range(8)]
        found = []
        for positions in ([0] * 8, [0 if cache is None else n - n % 32 for cache, n in zip(caches, LENGTHS, strict=True)]):
            tails = [ids if cache is None else np.concatenate([ids[at:], ids[:33]])
                     for ids, cache, at in zip(requests, caches, positions, strict=True)]
            if together:
                found.append(hidden(model, tails, positions=integers(*positions), caches=caches))
            else:
                found.append(np.concatenate([hidden(model, [tail], positions=integers(at), caches=[cache])
                                             for tail, at, cache in zip(tails, positions, caches, strict=True)]))
        return found, [0 if cache is None else cache.length for cache in caches]

    alone, lengths = run(1, False)
    for threads in (1, 2, 3):
        together, found = run(threads, True)
        assert found == lengths
        for one, all_ in zip(alone, together, strict=True):
            assert np.array_equal(one, all_)


def test_threads_have_parts():
    """Two threads with four requests each need the memory of the largest request twice, not that of all eight."""
    requests = [np.ones(100, np.int32)] * 8
    alone, parted = (LLaDAForCausalLM.random(dense(), "float32", num_threads=2) for _ in range(2))
    hidden(alone, requests[:1])
    hidden(parted, requests)
    one, both = alone._backend.workspace_bytes, parted._backend.workspace_bytes
    assert one < both < 2.5 * one


def test_what_is_wrong_is_said_of_the_whole_batch(model):
    requests = requests_of(model)
    model.num_threads = 2
    requests[6][5] = model.config.vocabulary
    caches = [model._backend.create_kv_cache() for _ in LENGTHS]
    with pytest.raises(ValueError, match=rf"tokens\[{sum(LENGTHS[:6]) + 5}\]: expected 0 to {model.config.vocabulary - 1}"):
        hidden(model, requests, caches=caches)
    assert [cache.length for cache in caches] == [0] * 8


def test_an_interrupt_ends_every_part():
    model = LLaDAForCausalLM.random(folders.config(d_model=256, n_heads=8, n_layers=3, mlp_hidden_size=2048, max_sequence_length=2048),
                                    "float32", num_threads=2)
    requests = [np.ones(2000, np.int32)] * 8
    caches = [model._backend.create_kv_cache() for _ in requests]
    with interrupts.interrupted(0.1):
        hidden(model, requests, caches=caches)
    assert [cache.length for cache in caches] == [0] * 8
    short = [ids[:100] for ids in requests]
    assert np.array_equal(hidden(model, short, caches=caches), hidden(model, short))
