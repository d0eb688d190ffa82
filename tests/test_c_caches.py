"""Key-value caches through the C interface."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
from c_api import INVALID_ARGUMENT, MASK, NONE, OK, PROMPT, Model, failed, lib


@pytest.fixture
def model(tiny: Any) -> Any:
    with Model(tiny[0]) as loaded:
        yield loaded


def test_a_cache_from_position_0_changes_nothing(model: Model) -> None:
    requests = [PROMPT, list(range(40))]
    _, plain = model.forward(requests)
    caches = [model.cache(), None]
    for _ in range(2):  # empty, then filled
        status, logits = model.forward(requests, [0, 0], caches)
        assert status == OK
        np.testing.assert_array_equal(logits, plain)
    assert lib.dropKVCache(model.handle, caches[0]) == OK


def test_a_prefix_is_reused(model: Model) -> None:
    """The rows of unchanged tokens come out the same when only they are computed; a cache grows at its end."""
    ids = list(range(50))
    cache = model.cache()
    _, whole = model.forward([ids], None, [cache])
    for begin in (1, 17, 49):
        status, part = model.forward([ids[begin:]], [begin], [cache])
        assert status == OK
        np.testing.assert_array_equal(part, whole[begin:])
    assert model.forward([[1, 2]], [50], [cache])[0] == OK  # extends it
    assert model.forward([[3]], [52], [cache])[0] == OK
    assert model.forward([[3]], [54], [cache])[0] == INVALID_ARGUMENT
    assert failed(INVALID_ARGUMENT, r"req_pos\[0\]: expected 0 to 53.*found 54")
    assert lib.dropKVCache(model.handle, cache) == OK


@pytest.mark.parametrize("length", [1, 16, 33])
def test_a_truncated_cache_serves_a_shorter_request(length: int, model: Model) -> None:
    """Bit for bit the pass without a cache; what a longer request left would be seen otherwise."""
    longer, shorter = list(range(50)), [7, *range(20, 19 + length)]
    cache = model.cache()
    _, plain = model.forward([shorter])
    for forget in (False, True):
        assert lib.truncateKVCache(cache, 0) == OK
        model.forward([longer], None, [cache])
        if forget:
            assert lib.truncateKVCache(cache, 0) == OK
        status, logits = model.forward([shorter], [0], [cache])
        assert status == OK and np.array_equal(logits, plain) == forget
    assert lib.truncateKVCache(cache, length) == OK, "its length is the request's"
    assert lib.truncateKVCache(cache, length + 1) == INVALID_ARGUMENT
    assert lib.dropKVCache(model.handle, cache) == OK


def test_truncation_undoes_an_extension(model: Model) -> None:
    ids = list(range(50))
    logits = []
    for extended in (False, True):
        cache = model.cache()
        model.forward([ids[:20]], None, [cache])
        if extended:
            model.forward([ids[20:]], [20], [cache])
            assert lib.truncateKVCache(cache, 20) == OK
        replaced, appended = model.forward([[9, 8, 7]], [5], [cache]), model.forward([[6] * 3], [20], [cache])
        assert replaced[0] == appended[0] == OK
        logits.append((replaced[1], appended[1]))
        assert lib.dropKVCache(model.handle, cache) == OK
    np.testing.assert_array_equal(logits[0][0], logits[1][0])
    np.testing.assert_array_equal(logits[0][1], logits[1][1])


def test_truncation_is_checked(model: Model) -> None:
    cache = model.cache()
    assert lib.truncateKVCache(None, 0) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "^cache: .*NULL")
    assert lib.truncateKVCache(cache, 0) == OK and lib.lladaLastError() == b""
    assert lib.truncateKVCache(cache, 1) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "^length: expected 0 to 0, found 1")
    model.forward([PROMPT], None, [cache])
    for length in (6, NONE):
        assert lib.truncateKVCache(cache, length) == INVALID_ARGUMENT
        assert failed(INVALID_ARGUMENT, f"^length: expected 0 to 5, found {length}")
    assert lib.truncateKVCache(cache, 3) == OK
    assert model.forward([[1]], [5], [cache])[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"req_pos\[0\]: expected 0 to 3")
    assert model.forward([[1]], [3], [cache])[0] == OK
    assert lib.dropKVCache(model.handle, cache) == OK


def test_a_changed_end_sees_the_prefix(tmp_path: Path) -> None:
    """In one layer keys depend on their own token only, so that the cached prefix is exact whatever follows it."""
    folders.random(tmp_path, n_layers=1)
    with Model(tmp_path) as model:
        cache = model.cache()
        model.forward([list(range(30))], None, [cache])
        changed = [*range(20), *range(30, 40)]
        _, whole = model.forward([changed])
        status, part = model.forward([changed[20:]], [20], [cache])
        assert status == OK
        np.testing.assert_array_equal(part, whole[20:])
        canvas = [*range(20), 9, *[MASK] * 9]
        status, *cached = model.infer([canvas[20:]], [20], [cache], ends=[25])
        assert status == OK
        for one, other in zip(cached, model.infer([canvas], ends=[25])[1:], strict=True):
            np.testing.assert_array_equal(one, other)
        assert 21 <= cached[1][0] < 25
        assert lib.dropKVCache(None, cache) == OK


def test_caches_are_checked(model: Model, tiny: Any) -> None:
    cache = model.cache()
    with Model(tiny[0]) as other:
        assert other.forward([PROMPT], None, [cache])[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"kv_caches\[0\].*another model")
        assert lib.dropKVCache(other.handle, cache) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "cache: belongs to another model")
    status, _ = model.forward([PROMPT, PROMPT], None, [cache, cache])
    assert status == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"kv_caches\[1\].*request 0")
    between = model.cache()
    assert model.forward([PROMPT] * 5, None, [None, cache, None, between, cache])[0] == INVALID_ARGUMENT
    assert failed(INVALID_ARGUMENT, r"^kv_caches\[4\]: is also that of request 1$")
    assert lib.dropKVCache(model.handle, between) == OK
    assert model.forward([PROMPT], [1], [cache])[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"req_pos\[0\]: expected 0 to 0")
    assert model.forward([PROMPT], [1])[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"req_pos\[0\]: expected 0 to 0")
    assert model.forward([PROMPT], [0], [cache])[0] == OK, "refusals left it empty and whole"
    assert lib.dropKVCache(model.handle, cache) == OK
    assert lib.dropKVCache(model.handle, None) == OK
    assert lib.createKVCache(None) is None and failed(INVALID_ARGUMENT, "model")
