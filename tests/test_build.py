"""What setup.py and pyproject.toml say, also for platforms that are not here."""
import re
import types
from pathlib import Path

import pytest
from build_script import declared

ROOT = Path(__file__).parent.parent
X86 = {"avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16"}


def kernels(arguments):
    return {name.removeprefix("llada_") for name, _ in arguments["libraries"]} - {"core", "scalar"}


@pytest.mark.parametrize(("system", "machine", "expected"), [
    ("linux", "x86_64", X86 | {"avx512amx"}), ("linux", "aarch64", {"neon", "neondot"}), ("linux", "riscv64", set()),
    ("darwin", "x86_64", X86), ("darwin", "arm64", {"neon", "neondot"}), ("win32", "AMD64", X86), ("win32", "ARM64", set())])
def test_kernels_are_those_of_the_machine(system, machine, expected):
    arguments = declared(machine, system)
    assert kernels(arguments) == expected
    flags = [flag for _, library in arguments["libraries"] for flag in library["cflags"]]
    assert all(flag.startswith("/" if system == "win32" else "-") for flag in flags)


def test_macos_builds_for_one_architecture():
    """The one of ARCHFLAGS, whatever the processor."""
    assert kernels(declared("arm64", "darwin", ARCHFLAGS="-arch x86_64")) == X86
    with pytest.raises(SystemExit, match="ARCHFLAGS: expected one architecture, found '-arch arm64 -arch x86_64'"):
        declared("arm64", "darwin", ARCHFLAGS="-arch arm64 -arch x86_64")


@pytest.mark.parametrize(("system", "expected"), [("darwin", "-dynamiclib"), ("linux", "-bundle")])
def test_a_library_for_c_is_no_bundle(system, expected, monkeypatch):
    """On macOS, where programs can be linked with the one only; modules stay what they were."""
    arguments, used = declared("arm64", system), {}
    command = arguments["cmdclass"]["build_ext"]
    builder = command.__new__(command)
    builder.compiler = types.SimpleNamespace(linker_so=["cc", "-bundle"], linker_so_cxx=["c++", "-bundle"])
    monkeypatch.setattr(command.__base__, "build_extension", lambda self, ext: used.update({ext.name: self.compiler.linker_so_cxx}))
    for name in ("llada_native._native", "llada_native.libllada"):
        builder.build_extension(types.SimpleNamespace(name=name))
    assert used == {"llada_native._native": ["c++", "-bundle"], "llada_native.libllada": ["c++", expected]}


@pytest.fixture(scope="module")
def project():
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_extras_that_messages_name_are_there(project):
    extras = project["project"]["optional-dependencies"]
    named = set()
    for path in ROOT.glob("llada_native/**/*.py"):
        named |= set(re.findall(r"llada-native\[(\w+)\]", path.read_text("utf-8")))
    assert named == {"gguf", "hub", "server", "viz"} < set(extras)
    assert extras["all"] == [f"llada-native[{','.join(sorted(named))}]"]


def test_versions_of_python_agree(project):
    """Wheels are made for all that the classifiers name, and those begin with the oldest that installs."""
    named = [line.rpartition(" ")[2] for line in project["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]
    wheels = [re.fullmatch(r"cp3(\d+)-\*", build)[1] for build in project["tool"]["cibuildwheel"]["build"]]
    assert {f"3.{minor}" for minor in wheels} >= set(named)
    assert project["project"]["requires-python"] == ">=" + named[0] == f">=3.{wheels[0]}"
    assert project["tool"]["ruff"]["target-version"] == "py" + named[0].replace(".", "")
