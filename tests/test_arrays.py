"""Logits of whatever arrays callers have: kinds of arrays, masks of padding, and what is refused."""
from __future__ import annotations

import numpy as np
import oracle
import pytest

from llada_native import LLaDAForCausalLM


@pytest.fixture(scope="module")
def model(tiny):
    return LLaDAForCausalLM.from_pretrained(tiny[0], num_threads=1)


class OnlyDLPack:
    """Of an array, the DLPack protocol and nothing else."""

    def __init__(self, values):
        self._values = np.asarray(values)

    def __dlpack__(self, **arguments):
        return self._values.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()


class OldDLPack(OnlyDLPack):
    """As before version 1.0 of the protocol."""

    def __dlpack__(self, stream=None):
        return self._values.__dlpack__(stream=stream)


class OnlyArray:
    def __init__(self, values):
        self._values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self._values.astype(dtype) if dtype else self._values


class Elsewhere:
    """What lives on another device, and says so when asked."""

    def __dlpack__(self, **arguments):
        raise BufferError("memory of another device")

    def __dlpack_device__(self):
        return (2, 0)


BATCH = np.random.default_rng(0).integers(0, 55, (3, 9))
KINDS = {"int64": lambda a: a, "int32": lambda a: a.astype(np.int32), "uint8": lambda a: a.astype(np.uint8), "Fortran": np.asfortranarray,
         "strided": lambda a: np.repeat(a, 2, 1)[:, ::2], "lists": lambda a: a.tolist(), "tuples": lambda a: tuple(map(tuple, a.tolist())),
         "list of arrays": list, "list of DLPack": lambda a: [OnlyDLPack(row) for row in a], "DLPack": OnlyDLPack, "old DLPack": OldDLPack,
         "list of __array__": lambda a: [OnlyArray(row) for row in a], "__array__": OnlyArray}


@pytest.mark.parametrize("function", ["forward_logits_batch", "forward"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_any_kind_of_array(model, kind, function):
    found = getattr(model, function)(KINDS[kind](BATCH))
    assert found.shape == (3, 9, 64) and found.dtype == np.float32
    for logits, row in zip(found, BATCH, strict=True):
        assert np.array_equal(logits, model.forward(row))


@pytest.mark.parametrize("kind", ["DLPack", "__array__"])
def test_one_sequence_of_any_kind(model, kind):
    assert np.array_equal(model.forward(KINDS[kind](BATCH[0])), model.forward(BATCH[0]))
    with pytest.raises(ValueError, match=r"^input_ids: expected two dimensions"):
        model.forward_logits_batch(KINDS[kind](BATCH[0]))


def test_logits_against_the_oracle(tiny, model):
    _, config, tensors = tiny
    for logits, row in zip(model.forward_logits_batch(BATCH), BATCH, strict=True):
        assert np.abs(logits - oracle.forward(tensors, config, row)).max() < 1e-4


def test_logits_of_torch_tensors(model):
    torch = pytest.importorskip("torch")
    wanted = model.forward_logits_batch(BATCH)
    assert np.array_equal(model.forward_logits_batch(torch.from_numpy(BATCH)), wanted)
    assert np.array_equal(model.forward_logits_batch(torch.from_numpy(BATCH), torch.ones(3, 9, dtype=torch.int64)), wanted)


MASKS = {"left": np.arange(9) >= np.array([[0], [3], [8]]), "right": np.arange(9) < np.array([[9], [1], [5]]),
         "holes": np.random.default_rng(1).random((3, 9)) < 0.6}


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_dropped(model, side, kind):
    """Kept rows are those of the unpadded sequences, bit for bit, and dropped ones are 0."""
    keep = MASKS[side]
    found = model.forward_logits_batch(BATCH, KINDS[kind](keep.astype(np.int64)))
    assert found.shape == (3, 9, 64) and found.dtype == np.float32 and not found[~keep].any()
    for logits, row, kept in zip(found, BATCH, keep, strict=True):
        assert np.array_equal(logits[kept], model.forward(row[kept]))
    assert np.array_equal(model.forward_logits_batch(BATCH, keep), found)


def test_what_stands_at_dropped_positions_does_not_matter(model):
    keep = MASKS["left"]
    assert np.array_equal(model.forward_logits_batch(np.where(keep, BATCH, 7), keep), model.forward_logits_batch(BATCH, keep))


@pytest.mark.parametrize("function", ["forward_logits_batch", "forward", "generate"])
def test_arrays_of_another_device_are_named(model, function):
    name = "prompts" if function == "generate" else "input_ids"
    with pytest.raises(TypeError, match=f"^{name}: expected an array in CPU memory, found Elsewhere: memory of another device"):
        getattr(model, function)(Elsewhere())
    with pytest.raises(TypeError, match=r"^attention_mask: expected an array in CPU memory, found Elsewhere"):
        getattr(model, function)(BATCH, attention_mask=Elsewhere())


@pytest.mark.parametrize(("ids", "kind", "message"), [
    ([[1, 2], [3]], ValueError, r"two dimensions .*\[2, 1\]"), ([1, 2], ValueError, "two dimensions"), ([], (TypeError, ValueError), ""),
    ([[]], ValueError, ""), (np.zeros((2, 0), int), ValueError, ""), (np.zeros((1, 2, 2), int), TypeError, "one or two dimensions"),
    ("text", TypeError, "found str"), ([[1.0, 2.0]], TypeError, "float64"), ([[1, 64]], ValueError, "0 to 63, found 64"),
    ([[1, -1]], ValueError, "found -1"), (None, TypeError, ""), (3, TypeError, ""),
], ids=str)
def test_what_is_no_batch_of_ids(model, ids, kind, message):
    with pytest.raises(kind, match=rf"^input_ids(\[\d\])?: .*{message}"):
        model.forward_logits_batch(ids)


@pytest.mark.parametrize(("mask", "kind", "message"), [
    (np.ones((2, 9), int), ValueError, "rows of"), (np.ones((3, 8), int), ValueError, "rows of"),
    (np.full((3, 9), 2), ValueError, "only 0 and 1"), (np.zeros((3, 9), int), ValueError, "a 1 in every row"),
    (np.ones((3, 9)), TypeError, "float64"),
], ids=["rows", "length", "two", "empty", "float"])
def test_masks_that_do_not_fit(model, mask, kind, message):
    with pytest.raises(kind, match=f"^attention_mask: .*{message}"):
        model.forward_logits_batch(BATCH, mask)
