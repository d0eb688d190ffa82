"""Build: one static library of C++ per instruction set, linked once into `_native`. The rest is in pyproject.toml."""
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

MSVC = sys.platform == "win32"
X86 = platform.machine().lower() in ("x86_64", "amd64")
DEBUG = os.environ.get("LLADA_DEBUG") == "1"
EXTRA = os.environ.get("LLADA_CXXFLAGS", "").split()  # for sanitizers and -Werror

# Baseline flags. Contraction is off so that float arithmetic is what the source says on every platform.
CFLAGS = (["/O2", "/std:c++17", "/EHsc"] if MSVC else
          ["-O3", "-std=c++17", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-lto"]) + EXTRA
# Headers of GCC 12 warn about their own undefined-value intrinsics (GCC bug 105593).
GCC_AVX512 = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# name: (gcc and clang flags, msvc flags, x86 only)
ISAS = {
    "scalar": ([], [], False),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["/arch:AVX2"], True),
    "avx512": (["-mavx512f", "-mavx512cd", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", *GCC_AVX512],
               ["/arch:AVX512"], True),
}
INCLUDE = ["include", "src_cpp"]
# What the linked module depends on: a change in any of them links it anew.
SOURCES = glob("src_cpp/**/*.cpp", recursive=True)
HEADERS = glob("include/llada/*.h") + glob("src_cpp/**/*.h", recursive=True)


def library(name, sources, flags=(), macros=()):
    return name, {"sources": sorted(sources), "include_dirs": INCLUDE, "cflags": [*CFLAGS, *flags], "macros": list(macros),
                  "obj_deps": {"": HEADERS}}


def libraries():
    """The core first, then the kernels that it refers to: the linker resolves names from left to right."""
    isas = {name: msvc if MSVC else gcc for name, (gcc, msvc, x86_only) in ISAS.items() if X86 or not x86_only}
    kernels = set(glob("src_cpp/kernels/kernels_*.cpp"))
    core = [f for f in glob("src_cpp/**/*.cpp", recursive=True) if f not in kernels]
    return [library("llada_core", core, macros=[("LLADA_X86_KERNELS", "1")] if X86 else []),
            *(library(f"llada_{name}", [f"src_cpp/kernels/kernels_{name}.cpp"], flags) for name, flags in isas.items())]


class ParallelBuildClib(build_clib):
    """Compiles all sources of all libraries at once."""

    def build_libraries(self, libraries):
        compile_sources = self.compiler.compile
        with ThreadPoolExecutor(os.cpu_count()) as compilers, ThreadPoolExecutor(len(libraries)) as archivers:
            def compile_in_parallel(sources, **options):
                return [name for names in compilers.map(lambda s: compile_sources([s], **options), sources) for name in names]

            self.compiler.compile = compile_in_parallel
            list(archivers.map(lambda item: build_clib.build_libraries(self, [item]), libraries))
        self.compiler.compile = compile_sources


class ParallelBuildExt(build_ext):
    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()


def extensions():
    names = [name for name, _ in libraries()]
    macros = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
    c_flags = [] if MSVC else ["-O3", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unused-parameter",
                               "-Wno-cast-function-type", *EXTRA]
    return cythonize(
        [Extension("llada_native._native", ["llada_native/_native.pyx"], language="c++", include_dirs=INCLUDE, libraries=names,
                   extra_compile_args=[*CFLAGS, *([] if MSVC else ["-Wno-unused-parameter", "-Wno-cast-function-type"])],
                   extra_link_args=EXTRA, depends=HEADERS + SOURCES),
         Extension("llada_native._sampler", ["llada_native/_sampler.pyx"], include_dirs=[numpy.get_include()], define_macros=macros,
                   extra_compile_args=c_flags, extra_link_args=EXTRA)],
        build_dir="build/cython",
        compiler_directives={"language_level": 3, "boundscheck": DEBUG, "wraparound": False, "initializedcheck": DEBUG,
                             "cdivision": True, "embedsignature": True})


setup(libraries=libraries(), ext_modules=extensions(), cmdclass={"build_clib": ParallelBuildClib, "build_ext": ParallelBuildExt})
