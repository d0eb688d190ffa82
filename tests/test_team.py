"""The threads of a forward pass, by a program of its own: also under ThreadSanitizer, where that is installed."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("flags", [[], ["-fsanitize=thread", "-g"]], ids=["plain", "thread sanitizer"])
def test_regions(tmp_path: Path, flags: list[str]) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    built = tmp_path / "team"
    compiled = subprocess.run([compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", *flags, f"-I{ROOT}/src_cpp",
                               f"-I{ROOT}/include", ROOT / "tests/team.cpp", ROOT / "src_cpp/base/team.cpp", "-o", built],
                              capture_output=True, text=True)
    if flags and "cannot find" in compiled.stderr:
        pytest.skip("no ThreadSanitizer here")
    assert compiled.returncode == 0, compiled.stderr
    # It does not know the lock with a timeout of libstdc++ (GCC bug 97845), and then takes the unlock for a mistake.
    environment = {**os.environ, "TSAN_OPTIONS": "report_mutex_bugs=0"}
    run = subprocess.run([built], capture_output=True, text=True, timeout=120, env=environment)
    if flags and "unexpected memory mapping" in run.stderr:
        pytest.skip("ThreadSanitizer cannot run here")
    assert run.returncode == 0, run.stdout + run.stderr
