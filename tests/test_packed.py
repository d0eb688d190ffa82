"""Packed weights in a file: mapped when they fit, made anew when anything about them is not right."""
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import folders
import numpy as np
import pytest

import llada_native
from llada_native import LLaDAForCausalLM

IDS = np.arange(20) % 50
FORMATS = [("float32", 64), ("bfloat16", 64), ("bfloat16_fast", 64), ("float16", 64), ("int8", 32), ("int4", 128)]


@pytest.fixture
def folder(tmp_path):
    config = folders.config(n_kv_heads=2)
    folders.write(tmp_path / "model", config, folders.tensors(config))
    return tmp_path / "model"


def load(folder, **arguments):
    return LLaDAForCausalLM(folder, **{"dtype": "int4", "group_size": 32, "cache_dir": folder.parent / "cache", **arguments})


def packed(folder):
    return sorted((folder.parent / "cache").glob("*.llada"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
def test_mapped_weights_are_the_packed_ones(isa, tmp_path, tied, dtype, group_size):
    config = folders.config(n_kv_heads=2, weight_tying=tied)
    (tmp_path / "model").mkdir()
    folders.write(tmp_path / "model", config, folders.tensors(config))
    plain = LLaDAForCausalLM(tmp_path / "model", dtype=dtype, group_size=group_size, isa=isa)
    first = load(tmp_path / "model", dtype=dtype, group_size=group_size, isa=isa)
    [file] = packed(tmp_path / "model")
    written = file.stat().st_mtime_ns
    second = load(tmp_path / "model", dtype=dtype, group_size=group_size, isa=isa)
    assert file.stat().st_mtime_ns == written and len(packed(tmp_path / "model")) == 1
    for model in (first, second):
        assert np.array_equal(model.forward(IDS), plain.forward(IDS))
        assert model.memory()["weights"] == plain.memory()["weights"]


def test_the_second_load_reads_no_weights(folder, monkeypatch):
    load(folder)
    monkeypatch.setattr("llada_native.checkpoint.Checkpoint.slices", lambda self: pytest.fail("packed again"))
    load(folder).forward(IDS)


def test_formats_do_not_disturb_each_other(folder):
    for dtype, group_size in FORMATS:
        load(folder, dtype=dtype, group_size=group_size)
    assert len(packed(folder)) == len(FORMATS)


DAMAGES = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "no end": lambda data: data[:-8],
    "half": lambda data: data[:len(data) // 2],
    "longer": lambda data: data + b"\0" * 64,
    "another magic": lambda data: b"GGUF" + data[4:],
    "another end": lambda data: data[:-1] + b"x",
    "another tag": lambda data: data.replace(b'"group_size": 32', b'"group_size": 64'),
    "a tag beyond the end": lambda data: data[:8] + b"\xff" * 8 + data[16:],
    "a page": lambda data: b"<!doctype html>" + data[15:],
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_do_not_fit_are_made_anew(folder, damage, caplog):
    wanted = load(folder).forward(IDS)
    [file] = packed(folder)
    good = file.read_bytes()
    file.unlink()
    file.write_bytes(DAMAGES[damage](good))
    with caplog.at_level(logging.INFO, "llada_native"):
        assert np.array_equal(load(folder).forward(IDS), wanted)
    assert "made anew" in caplog.text
    assert file.read_bytes() == good


def test_other_weights_are_noticed(folder):
    """A checkpoint that was trained on, of the same shapes."""
    old = load(folder).forward(IDS)
    config = folders.config(n_kv_heads=2)
    folders.write(folder, config, folders.tensors(config, seed=9))
    new = load(folder).forward(IDS)
    assert not np.array_equal(new, old) and np.array_equal(new, load(folder).forward(IDS))
    assert len(packed(folder)) == 1


def test_two_checkpoints_of_one_name(folder):
    other = folder.parent / "elsewhere" / "model"
    shutil.copytree(folder, other)
    load(folder)
    load(other, cache_dir=folder.parent / "cache")
    assert len(packed(folder)) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(folder, caplog):
    closed = folder.parent / "closed"
    closed.mkdir(mode=0o500)
    assert load(folder, cache_dir=closed).forward(IDS).shape == (20, 64)
    assert "not kept" in caplog.text


def test_a_place_that_is_a_file(folder, caplog):
    (folder.parent / "cache").write_text("")
    assert load(folder).forward(IDS).shape == (20, 64)
    assert "not kept" in caplog.text


def test_nothing_is_left_of_a_write_that_failed(folder, monkeypatch):
    def refuse(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    load(folder).forward(IDS)
    assert not list((folder.parent / "cache").iterdir())


def test_what_killed_processes_left_is_removed(folder):
    load(folder)
    kept = packed(folder)[0]
    old, new, other = (kept.with_name(f"{stem}.{i}.unfinished") for i, stem in enumerate((kept.stem, kept.stem, "another")))
    for path in (old, new, other):
        path.write_bytes(b"")
    for path in (old, other):
        os.utime(path, (0, 0))
    load(folder)
    assert kept.is_file() and not old.exists() and new.exists() and other.exists()


@pytest.mark.parametrize("name", ["n" * 240, "\u6a21" * 80, os.fsdecode(b"bad\xff")], ids=["long", "of long characters", "not UTF-8"])
def test_names_of_folders_that_files_cannot_have(folder, name):
    other = folder.rename(folder.with_name(name))
    load(other)
    assert len(packed(other)) == 1


PACK = """
import sys
import numpy as np
from llada_native import LLaDAForCausalLM
model = LLaDAForCausalLM(sys.argv[1], dtype="int4", group_size=32, num_threads=1, cache_dir=sys.argv[2])
sys.stdout.buffer.write(model.forward(np.arange(20) % 50).tobytes())
"""


def test_processes_that_pack_at_once(folder):
    """Each finds no file or a whole one; all have the same logits, and one file is left."""
    cache = folder.parent / "cache"
    runs = [subprocess.Popen([sys.executable, "-c", PACK, str(folder), str(cache)], stdout=subprocess.PIPE,
                             cwd=Path(llada_native.__file__).parents[1]) for _ in range(3)]
    logits = {run.communicate(timeout=120)[0] for run in runs}
    assert logits == {load(folder).forward(IDS).tobytes()} and len(list(cache.iterdir())) == 1


def test_mapped_weights_outlive_their_file(folder):
    load(folder)
    model = load(folder)
    wanted = model.forward(IDS)
    packed(folder)[0].unlink()
    assert np.array_equal(model.forward(IDS), wanted)


def test_random_models_have_packed_files_too(tmp_path):
    one, two = (LLaDAForCausalLM.random(folders.config(), "int4", seed=3, cache_dir=tmp_path) for _ in range(2))
    other = LLaDAForCausalLM.random(folders.config(), "int4", seed=4, cache_dir=tmp_path)
    assert np.array_equal(one.forward(IDS), two.forward(IDS)) and not np.array_equal(one.forward(IDS), other.forward(IDS))
    assert len(list(tmp_path.iterdir())) == 2


def test_random_models_of_two_shapes_keep_their_files(tmp_path):
    def loaded():
        for layers in (1, 2):
            LLaDAForCausalLM.random(folders.config(n_layers=layers), "int4", cache_dir=tmp_path).close()
        return {file.name: file.stat().st_ino for file in tmp_path.iterdir()}

    first = loaded()
    assert len(first) == 2 and all(name.startswith("random-0-") for name in first) and loaded() == first


def test_not_a_path(folder):
    with pytest.raises(TypeError, match="cache_dir: expected a folder's path, found 3"):
        load(folder, cache_dir=3)


def test_the_users_folder(monkeypatch, tmp_path):
    """What a shell expands in front of a word it leaves alone within one, and Python everywhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    config = folders.config()
    folders.write(tmp_path / "model", config, folders.tensors(config))
    for name in ("~/model", Path("~/model")):
        LLaDAForCausalLM(name, cache_dir="~/cache")
    assert len(list((tmp_path / "cache").glob("*.llada"))) == 1
    for wrong in ("", "~a\0b"):
        with pytest.raises(ValueError, match="cache_dir: expected a folder's path, found "):
            LLaDAForCausalLM("~/model", cache_dir=wrong)
