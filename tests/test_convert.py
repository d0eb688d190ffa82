"""Folders that `convert` writes: the same model, mapped, whole or not there, and never taken for another."""
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import folders
import gguf_files
import numpy as np
import pytest

import llada_native
from llada_native import EngineError, LLaDAForCausalLM, ModelFormatError, UnsupportedModelError, _native, cli, convert, packed

IDS = np.arange(20) % 50
FORMATS = [("float32", 64), ("bfloat16", 64), ("bfloat16_fast", 64), ("float16", 64), ("int8", 32), ("int4", 128)]


@pytest.fixture
def folder(tmp_path):
    config = folders.config(n_kv_heads=2)
    folders.write(tmp_path / "model", config, folders.tensors(config))
    (tmp_path / "model" / "generation_config.json").write_text('{"gen_length": 24, "block_length": 8}')
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
def test_the_same_model(isa, tmp_path, tied, dtype, group_size):
    config = folders.config(n_kv_heads=2, weight_tying=tied)
    source = folders.write(tmp_path / "model", config, folders.tensors(config))
    plain = LLaDAForCausalLM(source, dtype=dtype, group_size=group_size, isa=isa)
    out = convert(source, tmp_path / "out", dtype=dtype, group_size=group_size, isa=isa)
    shutil.rmtree(source)
    model = LLaDAForCausalLM(out)
    assert (model.dtype, model.isa, model.config) == (dtype, isa, plain.config)
    assert np.array_equal(model.forward(IDS), plain.forward(IDS))
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.forward(IDS), plain.forward(IDS))


def test_everything_beside_the_weights(folder, demo, tmp_path):
    out = convert(folder, tmp_path / "out")
    model = LLaDAForCausalLM(out)
    assert model.dtype == "float32" and model.tokenizer is None
    assert len(model.generate([[1, 2, 3]]).sequences[0]) == 3 + 24  # its generation_config.json
    from llada_native.model import DEMO

    model = LLaDAForCausalLM(convert(DEMO, tmp_path / "demo", dtype="int8"))
    prompt = "Sort these numbers: 31, 7, 52, 12."
    assert model.generate(prompt).text == demo.generate(prompt).text
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["config.json", "generation_config.json", "model.llada",
                                                                     "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0", "Q4_K"])
@pytest.mark.parametrize("arch", ["llada", "diffuse"])
def test_gguf_files(tmp_path, kind, arch):
    path, _ = gguf_files.pair(tmp_path, kind, arch)
    plain = LLaDAForCausalLM(path)
    out = convert(path, tmp_path / "out")
    path.unlink()
    model = LLaDAForCausalLM(out)
    assert (model.dtype, model.config) == (plain.dtype, plain.config)
    assert np.array_equal(model.forward(IDS), plain.forward(IDS))


def test_the_tokenizer_of_a_gguf_file(tmp_path, demo):
    model = LLaDAForCausalLM(convert(gguf_files.demo_file(tmp_path / "demo.gguf"), tmp_path / "out"))
    prompt = "Sort these numbers: 31, 7, 52, 12."
    one, other = (m.generate(prompt, gen_length=64) for m in (model, demo))
    assert one.text == other.text and np.array_equal(one.sequences, other.sequences)


def test_the_weights_are_mapped(folder, tmp_path, monkeypatch):
    out = convert(folder, tmp_path / "out", dtype="int4")
    monkeypatch.setattr("llada_native.loading.pack", lambda *_: pytest.fail("packed again"))
    LLaDAForCausalLM(out, cache_dir=tmp_path / "cache").forward(IDS)
    assert not (tmp_path / "cache").exists()


def age(folder):
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - packed.ABANDONED - 60,) * 2, follow_symlinks=False)


def test_what_a_killed_conversion_left_goes_after_a_day(folder, tmp_path):
    """Its own, and nobody else's: as large as the weights, and hidden."""
    names = [f".out.{'0' * 32}.unfinished", f".out.{'1' * 32}.unfinished", f".another.{'2' * 32}.unfinished",
             f".out.int4.{'3' * 32}.unfinished", ".out.notes.unfinished", f".out.{'4' * 32}.old"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").symlink_to("nowhere")
        if "1" not in name:
            age(tmp_path / name)
    convert(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.glob(".*")} == set(names[1:])  # .old may be the only one, as long as there is no other
    convert(folder, tmp_path / "out", force=True)
    assert {path.name for path in tmp_path.glob(".*")} == set(names[1:-1])


def test_a_conversion_that_takes_days_keeps_its_folder(folder, tmp_path):
    """Folders stay empty until the weights are packed, so those who pack them say that they do."""
    calls = []

    def progress(fraction):
        calls.append(fraction)
        [own] = tmp_path.glob(".out.*.unfinished")
        if len(calls) == 2:
            assert time.time() - own.stat().st_mtime < packed.ABANDONED / 2
            convert(folder, tmp_path / "out")
        age(own)

    convert(folder, tmp_path / "out", force=True, progress=progress)
    assert len(calls) > 2 and not list(tmp_path.glob(".*"))


def test_the_users_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert convert(folder, "~/out") == tmp_path / "out"


# ---- what is asked for and is not there

OTHER = _native.isas()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"dtype": "int8"}, "dtype: .*out holds weights packed as int4 in groups of 64 for scalar, expected dtype='int4', found 'int8': "
     "to have another, convert the checkpoint again: 'llada-native convert --help'"),
    ({"dtype": "bfloat16"}, "expected dtype='int4', found 'bfloat16'"),
    ({"group_size": 32}, "group_size: .*expected group_size=64, found 32: "),
    ({"isa": next(name for name, usable in OTHER.items() if usable and name != "scalar")}, "isa: .*expected isa='scalar', found"),
])
def test_another_format_is_refused(folder, tmp_path, arguments, message):
    out = convert(folder, tmp_path / "out", dtype="int4", isa="scalar")
    with pytest.raises(ValueError, match=message):
        LLaDAForCausalLM(out, **arguments)
    LLaDAForCausalLM(out, dtype="int4", group_size=64, isa="scalar").forward(IDS)


def test_the_environments_instruction_set_counts_too(folder, tmp_path, monkeypatch):
    out = convert(folder, tmp_path / "out", isa="scalar")
    monkeypatch.setenv("LLADA_ISA", next(name for name, usable in OTHER.items() if usable and name != "scalar"))
    with pytest.raises(ValueError, match="expected isa='scalar'"):
        LLaDAForCausalLM(out)


def test_a_processor_without_the_instruction_set(folder, tmp_path, monkeypatch):
    out = convert(folder, tmp_path / "out", isa="scalar")
    monkeypatch.setattr(_native, "isas", lambda: {"scalar": False, "avx9": True})
    with pytest.raises(ValueError, match=r"isa: .*weights packed as float32 for scalar, and this processor has avx9"):
        LLaDAForCausalLM(out)


def test_backends_that_need_floats(folder, tmp_path):
    out = convert(folder, tmp_path / "out", dtype="int4")
    with pytest.raises(UnsupportedModelError, match=r"holds weights packed as int4 .* and nothing else: use the checkpoint"):
        LLaDAForCausalLM(out, backend="reference")
    assert LLaDAForCausalLM(out, backend="placeholder").forward(IDS).shape == (20, 64)
    with pytest.raises(UnsupportedModelError, match="use the checkpoint that it was converted from"):
        convert(out, tmp_path / "again")
    assert not (tmp_path / "again").exists()


# ---- damaged folders

DAMAGES = {
    "empty": (lambda data: b"", "is no file of packed weights"),
    "text": (lambda data: b"hello", "is no file of packed weights"),
    "half a tag": (lambda data: data[:40], "is no file of packed weights"),
    "a huge tag": (lambda data: data[:8] + b"\xff" * 8 + data[16:], "is no file of packed weights"),
    "a tag that is no object": (lambda data: data[:8] + (2).to_bytes(8, "little") + b"[]" + data[18:], "is no file of packed weights"),
    "no end": (lambda data: data[:-8], "is not whole"),
    "half": (lambda data: data[:len(data) // 2], "is not whole"),
    "longer": (lambda data: data + bytes(64), "is not whole"),
    "another configuration": (lambda data: data.replace(b'"rope_theta": 10000.0', b'"rope_theta": 20000.0'),
                              "was packed from another configuration than config.json has"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights(folder, tmp_path, damage):
    change, message = DAMAGES[damage]
    out = convert(folder, tmp_path / "out")
    (out / "model.llada").write_bytes(change((out / "model.llada").read_bytes()))
    with pytest.raises(ModelFormatError, match=f"{out / 'model.llada'}.*{message}"):
        LLaDAForCausalLM(out)


def test_the_variable_that_asks_for_other_kernels_is_named(folder, tmp_path, monkeypatch):
    out = convert(folder, tmp_path / "out", isa="scalar")
    monkeypatch.setenv("LLADA_ISA", other := next(name for name, usable in OTHER.items() if usable and name != "scalar"))
    with pytest.raises(ValueError, match=f"isa: .*expected isa='scalar', found '{other}' in LLADA_ISA: "):
        LLaDAForCausalLM(out)


def test_weights_of_another_version(folder, tmp_path, monkeypatch):
    out = convert(folder, tmp_path / "out")
    monkeypatch.setattr(packed, "PACKED_FORMAT", packed.PACKED_FORMAT + 1)
    message = (r"packed weights of format 2, this version reads 3: convert the checkpoint with it, over this folder with --force "
               r"\(it holds weights packed as \w+")
    with pytest.raises(UnsupportedModelError, match=message):
        LLaDAForCausalLM(out)


def test_weights_in_words(folder, tmp_path):
    """A tag that is well-formed and says nonsense."""
    out = convert(folder, tmp_path / "out")
    data = (out / "model.llada").read_bytes()
    for old, new in ((b'"dtype": "float32"', b'"dtype": "float77"'), (b'"isa": "', b'"isa": "_'),
                     (b'"group_size": 64', b'"group_size": ab')):
        (out / "model.llada").write_bytes(data.replace(old, new))
        with pytest.raises((ModelFormatError, ValueError), match=str(out)):
            LLaDAForCausalLM(out)


# ---- whole or not there

def left(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir())


def test_what_is_there_stays(folder, tmp_path):
    out = convert(folder, tmp_path / "out", dtype="int4")
    before = (out / "model.llada").read_bytes()
    with pytest.raises(FileExistsError, match="is there already; force"):
        convert(folder, out, dtype="int8")
    assert (out / "model.llada").read_bytes() == before
    assert LLaDAForCausalLM(convert(folder, out, dtype="int8", force=True)).dtype == "int8"
    assert left(tmp_path) == ["model", "out"]


@pytest.mark.parametrize("kind", ["file", "folder", "checkpoint", "link", "more files"])
def test_force_replaces_what_convert_wrote_and_nothing_else(folder, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
    elif kind == "folder":
        out.mkdir()
    elif kind == "checkpoint":
        out = folder
    else:
        convert(folder, tmp_path / "made")
        if kind == "link":
            out.symlink_to(tmp_path / "made")
        else:
            out = tmp_path / "made"
            (out / "notes.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="was not written by convert, and is not replaced"):
        convert(folder, out, force=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError("No space left"), OSError("No space left")])
@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_of_what_failed(folder, tmp_path, monkeypatch, error, there):
    out = tmp_path / "out"
    if there:
        convert(folder, out, dtype="int4")

    def fail(*_):
        raise error

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        convert(folder, out, force=there)
    assert left(tmp_path) == (["model", "out"] if there else ["model"])
    if there:
        assert LLaDAForCausalLM(out).dtype == "int4"


@pytest.mark.parametrize("out", [".", "../out", "../out/../out", "../out/.."])
def test_a_path_that_leads_through_the_folder_itself(folder, tmp_path, monkeypatch, out):
    made = convert(folder, tmp_path / "out", dtype="float32")
    monkeypatch.chdir(made)
    if out.endswith("/.."):
        with pytest.raises(FileExistsError, match="was not written by convert"):
            convert(folder, out, dtype="int8", force=True)
    else:
        convert(folder, out, dtype="int8", force=True)
    assert LLaDAForCausalLM(made).dtype == ("float32" if out.endswith("/..") else "int8")
    assert left(tmp_path) == ["model", "out"]


def test_a_rename_that_fails_puts_back_what_was_there(folder, tmp_path, monkeypatch):
    out, rename = convert(folder, tmp_path / "out", dtype="int4"), os.rename

    def fail(old, new):
        if ".unfinished" in str(old):
            raise OSError("the disk is gone")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        convert(folder, out, force=True)
    assert left(tmp_path) == ["model", "out"] and LLaDAForCausalLM(out).dtype == "int4"


def test_too_little_room(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"out: the weights need 0.0 GiB as float32, and 0.0 GiB are free on that disk"):
        convert(folder, tmp_path / "out")
    assert left(tmp_path) == ["model"]


def test_a_disk_that_fills_up(folder, tmp_path):
    """A file may have 4 KiB, then writes fail."""
    code = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "from llada_native import cli; sys.exit(cli.main(['convert', *sys.argv[1:]]))")
    run = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "out")], capture_output=True, text=True,
                         cwd=Path(llada_native.__file__).parents[1])
    assert run.returncode == 1 and "the weights cannot be written: is the disk full?" in run.stderr
    assert left(tmp_path) == ["model"]


def test_an_interrupted_run(tmp_path):
    """Ctrl-C while a model that takes seconds is packed."""
    config = folders.config(d_model=1024, n_heads=8, n_kv_heads=8, mlp_hidden_size=2048, n_layers=12)
    source = folders.write(tmp_path / "model", config, folders.tensors(config), "bfloat16")
    run = subprocess.Popen([sys.executable, "-m", "llada_native", "convert", str(source), str(tmp_path / "out"), "--dtype", "int4",
                            "--num-threads", "1"], stderr=subprocess.PIPE, text=True, cwd=Path(llada_native.__file__).parents[1])
    while len(left(tmp_path)) == 1 and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 130 and "interrupted" in errors
    assert left(tmp_path) == ["model"]


# ---- the command line and arguments

def test_the_command_line(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["convert", str(folder), out, "--dtype", "int4", "--group-size", "32"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: weights packed as int4 in groups of 32 for {_native.active_isa()}, 0.")
    assert cli.main(["info", "--json", "--model", out]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["dtype"] == "int4"
    assert cli.main(["convert", str(folder), out]) == 1
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["convert", str(folder), out, "--force"]) == 0


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    assert "llada-native convert path/to/LLaDA-8B-Instruct llada-8b-int4 --dtype int4\n" in capsys.readouterr().out


def test_progress(folder, tmp_path):
    seen = []
    convert(folder, tmp_path / "out", progress=seen.append)
    assert seen[0] == 0 and seen[-1] == 1 and seen == sorted(seen)


def test_the_bar(monkeypatch, capsys):
    from llada_native.progress import Bar

    with Bar("packing") as bar:
        bar(0.5)
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with Bar("packing") as bar:
        bar(0.5)
    assert capsys.readouterr().err == ""  # nor one that knows escape sequences
    monkeypatch.setenv("TERM", "xterm")
    with Bar("packing") as bar:
        for fraction in (0, 0.25, 0.251, 1):
            bar(fraction)
    lines = capsys.readouterr().err.split("\r\x1b[K")
    assert lines[1] == "packing [" + " " * 40 + "]   0 %" and lines[2].startswith("packing [" + "#" * 10 + " " * 30 + "]  25 %, ")
    assert len(lines) == 4 and lines[3].endswith("100 %, 0 s left\n")


@pytest.mark.parametrize(("columns", "wanted"), [(50, f"packing [{'#' * 11}{' ' * 11}]  50 %, 60 s left"), (27, "packing  50 %, 60 s left"),
                                                 (12, "packing  50")])
def test_the_bar_fits_into_the_terminal(monkeypatch, capsys, columns, wanted):
    """Else each of its states would be a line of its own."""
    from llada_native import progress, terminal

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(terminal, "size", lambda stream: (columns, 24))
    monkeypatch.setattr(progress.time, "monotonic", iter([0.0, 60.0]).__next__)
    with progress.Bar("packing") as bar:
        bar(0.5)
    assert capsys.readouterr().err == f"\r\x1b[K{wanted}\n" and len(wanted) < columns


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"source": 3}, TypeError, "source: expected a path, found 3"), ({"out": None}, TypeError, "out: expected a path, found None"),
    ({"dtype": "int3"}, ValueError, "dtype: expected one of"), ({"group_size": 48}, ValueError, "group_size: expected one of"),
    ({"isa": "sse"}, ValueError, "isa: expected one of"), ({"num_threads": 0}, ValueError, "num_threads: expected 1 to"),
    ({"force": 1}, TypeError, "force: expected True or False"), ({"source": "/nowhere"}, ModelFormatError, "/nowhere"),
])
def test_arguments(folder, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        convert(**{"source": folder, "out": tmp_path / "out", **arguments})
    assert left(tmp_path) == ["model"]
