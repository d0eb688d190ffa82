"""Where the C interface of this package lies: its header and its shared library."""
from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = "libllada" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


def get_include() -> str:
    """Folder to give to a C compiler with ``-I``, for ``#include "llada/llada.h"``.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        The header is not there.
    """
    for folder in (HERE / "include", HERE.parent / "include"):  # installed; built in place
        if (folder / "llada" / "llada.h").is_file():
            return str(folder)
    raise FileNotFoundError(f"{HERE / 'include' / 'llada' / 'llada.h'}: no such file; install llada-native again")


def get_library() -> str:
    """Path of the shared library, for `ctypes.CDLL` and, but for Windows, a linker.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        The library is not there.
    """
    path = HERE / LIBRARY
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; install llada-native again, or build it in place with 'make build'")
    return str(path)
