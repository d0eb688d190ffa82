"""What tests of several families compare: logits with an oracle's, rows in company with rows alone, mapped weights with packed ones."""
import numpy as np

from llada_native import LLaDAForCausalLM

# The contract of the design: float32 weights match the float64 reference within this share of its largest logit.
TOLERANCE = 1e-5


def assert_close(found, wanted, tolerance=TOLERANCE):
    error = np.abs(found - wanted) / np.abs(wanted).max()
    i = np.unravel_index(np.argmax(error), error.shape)
    assert error[i] <= tolerance, f"at {i}: found {found[i]}, wanted {wanted[i]}, error {error[i]:.2e} of the largest logit"


def assert_bits_in_any_company(model, requests, threads=(1, 2, 3)):
    """Five requests alone, in batches of any order at any number of threads, and some of all their rows."""
    alone = [model.forward(ids) for ids in requests]
    assert all(np.isfinite(logits).all() for logits in alone)
    for n in threads:
        model.num_threads = n
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
            for i, logits in zip(order, model.forward([requests[i] for i in order]), strict=True):
                assert np.array_equal(logits, alone[i]), f"request {i}, {n} threads, order {order}"
    tokens, lengths = np.concatenate(requests).astype(np.int32), np.array([len(ids) for ids in requests], np.int32)
    everything = model._backend.hidden(tokens, lengths, np.arange(len(tokens), dtype=np.int32))
    for n in (1, 2, 17, 200):
        some = np.sort(np.random.default_rng(n).choice(len(tokens), n, replace=False)).astype(np.int32)
        assert np.array_equal(model._backend.hidden(tokens, lengths, some), everything[some])


def assert_mapped_as_packed(folder, cache_dir, ids, **options):
    """A model that packs its weights and one that maps them afterwards are the one that does neither."""
    plain = LLaDAForCausalLM(folder, **options)
    for model in (LLaDAForCausalLM(folder, cache_dir=cache_dir, **options) for _ in range(2)):
        assert np.array_equal(model.forward(ids), plain.forward(ids))
        assert model.memory()["weights"] == plain.memory()["weights"]
    assert len(list(cache_dir.iterdir())) == 1
