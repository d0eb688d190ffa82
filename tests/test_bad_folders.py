"""Malformed checkpoint folders: each is a valid one with one thing damaged, and each is refused by name."""
from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import bad_folders as bad
import folders
import numpy as np
import pytest
from memory import resident
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import llada_native
from llada_native import LladaError, LLaDAForCausalLM, ModelFormatError, NonFiniteLogitsError


def refusal(folder: Path) -> LladaError:
    with pytest.raises(LladaError) as info:
        LLaDAForCausalLM(folder, num_threads=1)
    return info.value


def generates(folder: Path) -> bool:
    with LLaDAForCausalLM(folder, num_threads=1) as model:
        return len(model.generate([1, 2, 3], gen_length=4).sequences[0]) == 7


@pytest.mark.parametrize("case", bad.CASES, ids=lambda case: case.name)
def test_a_damaged_folder_is_refused_by_name(case: bad.Case, tmp_path: Path) -> None:
    folder = bad.good(tmp_path / "model")
    case.damage(folder)
    error = refusal(folder)
    assert type(error) is case.error
    assert str(error).startswith(str(folder)), "the message begins with where the trouble is"
    assert re.search(case.message, str(error)), str(error)
    assert len(str(error)) < 2000


@pytest.mark.parametrize("place", bad.PLACES)
def test_truncated_weights(place: str, tmp_path: Path) -> None:
    folder = bad.good(tmp_path / "model")
    path = folder / bad.WEIGHTS
    data = path.read_bytes()
    length = bad.PLACES[place](bad.header_length(data), len(data))
    os.truncate(path, length)
    error = refusal(folder)
    assert type(error) is ModelFormatError
    assert re.match(re.escape(str(path)) + rf": not a valid safetensors file \({length} bytes\): \S", str(error)), str(error)


@pytest.mark.parametrize(("make", "kind"), [
    (lambda path: None, "or a GGUF file on this machine, found nothing"),
    (lambda path: path.symlink_to("nowhere"), "or a GGUF file on this machine, found nothing"),
    (Path.touch, "or a GGUF file, which begins with b'GGUF', found an empty file"),
    (lambda path: path.write_bytes(b"PK45"), "or a GGUF file, which begins with b'GGUF', found a file that begins with b'PK45'"),
], ids=["absent", "dangling link", "empty file", "file"])
def test_a_folder_that_is_none(make: Callable[[Path], None], kind: str, tmp_path: Path) -> None:
    make(tmp_path / "model")
    error = refusal(tmp_path / "model")
    assert type(error) is ModelFormatError
    assert str(error) == f"{tmp_path / 'model'}: expected a checkpoint folder {kind}"


def test_a_folder_whose_name_is_too_long(tmp_path: Path) -> None:
    error = refusal(tmp_path / ("x" * 300))
    assert type(error) is ModelFormatError
    assert str(error).startswith(str(tmp_path / ("x" * 300)))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_link_to_nothing_is_named(name: str, tmp_path: Path) -> None:
    folder = bad.good(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("nowhere")
    assert str(refusal(folder)).startswith(f"{folder / name}: ")


def test_an_empty_folder_misses_its_config(tmp_path: Path) -> None:
    assert str(refusal(tmp_path)) == f"{tmp_path / 'config.json'}: no such file; a checkpoint folder has one"


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    with LLaDAForCausalLM(bad.good(tmp_path / "model"), num_threads=1) as model:
        for prompts in ("Hello", ["Hello", "there"], [{"role": "user", "content": "Hello"}]):
            with pytest.raises(ValueError, match=r"^prompts: text needs a tokenizer.*no tokenizer\.json.*token ids"):
                model.generate(prompts, gen_length=4)
        assert len(model.generate([1, 2, 3], gen_length=4).sequences[0]) == 7


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_weights_that_are_not_numbers(backend: str, tmp_path: Path) -> None:
    """They load, because every bit pattern is a float, and generation says what is wrong."""
    embedding = bad.TENSORS["model.transformer.wte.weight"].copy()
    embedding[5] = np.nan
    folders.write(tmp_path, bad.GOOD, bad.TENSORS | {"model.transformer.wte.weight": embedding})
    with LLaDAForCausalLM(tmp_path, num_threads=1, backend=backend) as model, \
            pytest.raises(NonFiniteLogitsError, match=r"prompt 1: .*NaN.*weights are damaged"):
        model.generate([[1, 2, 3], [4, 5]], gen_length=4)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("words", [{f"word{i}": i for i in range(65)}, {"word": 0, "word64": 64}], ids=["large", "sparse"])
def test_a_tokenizer_beyond_the_vocabulary(words: dict[str, int], backend: str, tmp_path: Path) -> None:
    """Ids up to 64 for an embedding of 64 rows: refused when loading, or when a text has such a token."""
    folder = bad.good(tmp_path / "model")
    bad.put("tokenizer.json", Tokenizer(WordLevel(words, unk_token="word64")).to_str())(folder)
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected .*\b6[345]\b|prompts\[0\]: expected .* 0 to 63, found 64"):
        LLaDAForCausalLM(folder, num_threads=1, backend=backend).generate("word64", gen_length=4)


LOAD_WITH_LITTLE_MEMORY = """
import resource, sys
import llada_native
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    llada_native.LLaDAForCausalLM(sys.argv[1], num_threads=1)
except llada_native.LladaError as e:
    print(type(e).__name__, e)
"""


@pytest.mark.resident
def test_a_config_cannot_exhaust_memory(tmp_path: Path) -> None:
    """Sixteen million layers are within the range of a dimension; a folder of 100 KB does not have them."""
    folder = bad.good(tmp_path / "model")
    bad.edit(n_layers=1 << 24)(folder)
    run = subprocess.run([sys.executable, "-c", LOAD_WITH_LITTLE_MEMORY, str(folder)], capture_output=True, text=True, timeout=60,
                         cwd=Path(llada_native.__file__).parents[1])
    assert run.returncode == 0, run.stderr[-500:]
    assert re.match(r"ModelFormatError .*(n_layers|missing)", run.stdout), run.stdout


def test_a_duplicate_key_is_found_in_linear_time(tmp_path: Path) -> None:
    folder = bad.good(tmp_path / "model")
    keys = ", ".join(f'"tensor {i}": 0' for i in range(20_000))
    bad.put(bad.INDEX, f'{{"weight_map": {{{keys}, "tensor 19999": 0}}}}')(folder)
    start = time.process_time()
    assert re.search(r"index\.json: duplicate key 'tensor 19999'", str(refusal(folder)))
    assert time.process_time() - start < 1


def test_a_good_folder_loads_after_every_failure(tmp_path: Path) -> None:
    for i, case in enumerate(bad.CASES):
        folder = bad.good(tmp_path / str(i))
        case.damage(folder)
        with suppress(Exception):
            LLaDAForCausalLM(folder, num_threads=1)
        shutil.rmtree(folder)
    assert generates(bad.good(tmp_path / "good"))
    assert generates(bad.good(tmp_path / "sharded", shards=3))


@pytest.mark.resident
@pytest.mark.parametrize("damage", [
    bad.edit(d_model=0), bad.put(bad.WEIGHTS, b"x" * 500), bad.tensors(up_proj=np.zeros((1, 1), np.float32)),
    bad.mapped("../x.safetensors"), bad.put("tokenizer.json", "{}"), bad.put("generation_config.json", '{"gen_length": "a"}'),
], ids=["config", "weights", "shape", "index", "tokenizer", "after loading"])
def test_failures_leak_nothing(damage: bad.Damage, tmp_path: Path) -> None:
    folder = bad.good(tmp_path / "model")
    damage(folder)
    for _ in range(30):
        refusal(folder)
    gc.collect()
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(300):
        refusal(folder)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files
    assert resident() - before < 8 << 20
