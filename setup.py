"""Build: one static library of C++ per instruction set, linked into `_native` and into libllada. The rest is in pyproject.toml."""
import copy
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
from setuptools.command.build_py import build_py

if sys.maxsize < 2**32 or sys.byteorder != "little":
    raise SystemExit(f"llada-native: expected a 64-bit, little-endian Python, found {platform.architecture()[0]}, {sys.byteorder}-endian")

MSVC, MACOS = sys.platform == "win32", sys.platform == "darwin"
MACHINE = platform.machine().lower()
if MACOS:  # Python of python.org compiles for both architectures, which have different kernels, and for systems without std::filesystem
    os.environ["ARCHFLAGS"] = os.environ.get("ARCHFLAGS") or f"-arch {MACHINE}"
    MACHINE, *others = os.environ["ARCHFLAGS"].replace("-arch", "").split()
    if others:
        raise SystemExit(f"ARCHFLAGS: expected one architecture, found {os.environ['ARCHFLAGS']!r}")
    os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", "11.0")
X86 = MACHINE in ("x86_64", "amd64")
LINUX = sys.platform.startswith("linux")
ARM = MACHINE in ("aarch64", "arm64") and not MSVC
DEBUG = os.environ.get("LLADA_DEBUG") == "1"
EXTRA = os.environ.get("LLADA_CXXFLAGS", "").split()  # for sanitizers and -Werror

# Baseline flags. Contraction is off so that float arithmetic is what the source says on every platform.
# Mutexes of Visual Studio 2022 want a runtime library as new, and another package may have loaded an older one.
CFLAGS = (["/O2", "/std:c++17", "/EHsc", "/D_DISABLE_CONSTEXPR_MUTEX_CONSTRUCTOR"] if MSVC else
          ["-O3", "-std=c++17", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno",
           "-fno-trapping-math", "-fno-lto", "-g0"]) + EXTRA
# Headers of GCC 12 warn about their own undefined-value intrinsics (GCC bug 105593).
AVX512 = ["-mavx512f", "-mavx512cd", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c",
          "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
# name: (gcc and clang flags, msvc flags, whether this machine's architecture has it)
ISAS = {
    "scalar": ([], [], True),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["/arch:AVX2"], X86),
    "avxvnni": (["-mavx2", "-mfma", "-mf16c", "-mavxvnni"], ["/arch:AVX2"], X86),
    "avx512": (AVX512, ["/arch:AVX512"], X86),
    "avx512vnni": ([*AVX512, "-mavx512vnni"], ["/arch:AVX512"], X86),
    "avx512bf16": ([*AVX512, "-mavx512vnni", "-mavx512bf16"], ["/arch:AVX512"], X86),
    "avx512amx": ([*AVX512, "-mavx512vnni"], [], X86 and LINUX),  # its instructions are written out
    "neon": ([], [], ARM),
    "neondot": (["-march=armv8.2-a+dotprod"], [], ARM),
}
INCLUDE = ["include", "src_cpp"]
C_HEADER = "include/llada/llada.h"
C_INTERFACE = "src_cpp/c_api/llada.cpp"
SHARED = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
# What the linked module depends on: a change in any of them links it anew.
SOURCES = glob("src_cpp/**/*.cpp", recursive=True)
HEADERS = glob("include/llada/*.h") + glob("src_cpp/**/*.h", recursive=True)


def library(name, sources, flags=(), macros=()):
    return name, {"sources": sorted(sources), "include_dirs": INCLUDE, "cflags": [*CFLAGS, *flags], "macros": list(macros),
                  "obj_deps": {"": HEADERS}}


def libraries():
    """The core first, then the kernels that it refers to: the linker resolves names from left to right."""
    isas = {name: msvc if MSVC else gcc for name, (gcc, msvc, here) in ISAS.items() if here}
    macros = [(name, "1") for name, here in (("LLADA_X86_KERNELS", X86), ("LLADA_AMX_KERNELS", X86 and LINUX),
                                             ("LLADA_ARM_KERNELS", ARM)) if here]
    kernels = set(glob("src_cpp/kernels/kernels_*.cpp"))
    core = [f for f in glob("src_cpp/**/*.cpp", recursive=True) if f not in kernels | {C_INTERFACE}]
    return [library("llada_core", core, macros=macros),
            *(library(f"llada_{name}", [f"src_cpp/kernels/kernels_{name}.cpp"], flags) for name, flags in isas.items())]


def set_up(compiler):
    """MSVC is looked for at its first use: here, and not by many threads at once."""
    if MSVC:
        compiler.initialize()


class ParallelBuildClib(build_clib):
    """Compiles all sources of all libraries at once."""

    def build_libraries(self, libraries):
        set_up(self.compiler)
        compile_sources = self.compiler.compile
        with ThreadPoolExecutor(os.cpu_count()) as compilers, ThreadPoolExecutor(len(libraries)) as archivers:
            def compile_in_parallel(sources, **options):
                return [name for names in compilers.map(lambda s: compile_sources([s], **options), sources) for name in names]

            self.compiler.compile = compile_in_parallel
            list(archivers.map(lambda item: build_clib.build_libraries(self, [item]), libraries))
        self.compiler.compile = compile_sources


class ParallelBuildExt(build_ext):
    """Compiles all extensions at once. `libllada` among them is no Python module: it has a library's name and exports."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()
        self.ext_map["libllada"].define_macros.append(("LLADA_VERSION", f'"{self.distribution.get_version()}"'))

    def build_extensions(self):
        set_up(self.compiler)
        super().build_extensions()

    def build_extension(self, ext):
        if ext.name.endswith(".libllada") and MACOS:  # a module is a bundle there, which no program can be linked with
            self = copy.copy(self)
            self.compiler = copy.copy(self.compiler)
            for linker in ("linker_so", "linker_so_cxx"):
                words = getattr(self.compiler, linker)
                setattr(self.compiler, linker, ["-dynamiclib" if word == "-bundle" else word for word in words])
        build_ext.build_extension(self, ext)

    def get_ext_filename(self, fullname):
        if fullname.split(".")[-1] == "libllada":
            return os.path.join(*fullname.split(".")) + SHARED
        return super().get_ext_filename(fullname)

    def get_export_symbols(self, ext):
        return [] if ext.name.endswith(".libllada") else super().get_export_symbols(ext)


class BuildPy(build_py):
    """Adds the C header to the package; in-place builds have it in include/."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = os.path.join(self.build_lib, "llada_native", C_HEADER)
            self.mkpath(os.path.dirname(target))
            self.copy_file(C_HEADER, target)


def shared_library(archives):
    links = {"linux": ["-Wl,-soname,libllada.so", "-Wl,--version-script=src_cpp/c_api/exports.map", "-Wl,-z,nodelete"],  # threads stay
             "darwin": ["-Wl,-install_name,@rpath/libllada.dylib"]}
    return Extension("llada_native.libllada", [C_INTERFACE], language="c++", include_dirs=INCLUDE, libraries=archives,
                     define_macros=[("LLADA_BUILDING", "1")], extra_compile_args=CFLAGS,
                     extra_link_args=[*links.get(sys.platform, []), *EXTRA],
                     depends=["pyproject.toml", "src_cpp/c_api/exports.map", *HEADERS, *SOURCES])


def extensions():
    names = [name for name, _ in libraries()]
    macros = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
    flags = [*CFLAGS, *([] if MSVC else ["-Wno-unused-parameter", "-Wno-cast-function-type", "-Wno-ignored-qualifiers"])]
    return cythonize(
        [Extension("llada_native._native", ["llada_native/_native.pyx"], language="c++", include_dirs=INCLUDE, libraries=names,
                   extra_compile_args=flags, extra_link_args=EXTRA, depends=HEADERS + SOURCES),
         Extension("llada_native._sampler", ["llada_native/_sampler.pyx"], language="c++", include_dirs=[numpy.get_include(), *INCLUDE],
                   define_macros=macros, extra_compile_args=flags, extra_link_args=EXTRA, depends=HEADERS)],
        build_dir="build/cython",
        compiler_directives={"language_level": 3, "boundscheck": DEBUG, "wraparound": False, "initializedcheck": DEBUG,
                             "cdivision": True, "embedsignature": True})


setup(libraries=libraries(), ext_modules=[*extensions(), shared_library([name for name, _ in libraries()])],
      cmdclass={"build_clib": ParallelBuildClib, "build_ext": ParallelBuildExt, "build_py": BuildPy})
