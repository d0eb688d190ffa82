"""What `import llada_native` costs a program, in a fresh interpreter for each sample."""
from pathlib import Path

import llada_native


def timeraw_import():
    """The interpreter is told where this package is: asv hides PYTHONPATH from it."""
    return "import llada_native", f"import sys; sys.path.append({str(Path(llada_native.__file__).parents[1])!r})"


timeraw_import.version = "1"
timeraw_import.timeout = 120
