"""The rules between rooms (CONTRIBUTING.md), read from the files' own #includes and imports.

Each rule is a function from a file to the list of its violations. The first tests run the rules over the checkout; the
others run them over small snippets, to show that every rule fires on what it forbids and on nothing else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# ---- C++ ------------------------------------------------------------------------------------------------------------

CXX_SUFFIXES = {".hpp", ".cpp", ".h", ".cu", ".cuh"}
STANDARD_HEADER = re.compile(r"[a-z_]+")  # <vector>; everybody else's have a dot, a slash or a capital
# Room -> the rooms of this project that it may include, beside itself.
MAY_INCLUDE = {
    "csrc/include": set(),
    "csrc/cpu": {"csrc/include"},
    "csrc/cuda": {"csrc/include"},
    "bindings": {"csrc/include", "csrc/cpu", "csrc/cuda"},
    "tests/cpp": {"csrc/include", "csrc/cpu", "csrc/cuda"},
}
INCLUDE = re.compile(r"^[ \t]*#[ \t]*include(?:_next)?[ \t]*([<\"])([^>\"]+)[>\"]", re.MULTILINE)
PYTHON_HEADER = re.compile(r"(Python|numpy/.*|pybind11/.*|nanobind/.*)(\.h)?$")
CUDA_HEADER = re.compile(r"(cuda|cublas|curand|cusparse|cusolver|cub/|thrust/|cooperative_groups|nvToolsExt|mma\.h).*")


def room_of(path: str) -> str | None:
    return next((room for room in MAY_INCLUDE if path.startswith(room + "/")), None)


def resolve(path: str, name: str, known: set[str]) -> str | None:
    """The file of this project that `#include "name"` in `path` means; None for a header from elsewhere."""
    for folder in (str(Path(path).parent), "csrc/include", "csrc"):
        parts: list[str] = []
        for part in (*Path(folder).parts, *Path(name).parts):
            parts = parts[:-1] if part == ".." else [*parts, part]
        if "/".join(parts) in known:
            return "/".join(parts)
    return None


def cxx_violations(path: str, text: str, known: set[str]) -> Iterator[str]:
    """What the rules forbid among the includes of one C++ file; `known` are all C++ files of the project."""
    room = room_of(path)
    if room is None:
        yield f"{path}: lies in no known room"
        return
    for bracket, name in INCLUDE.findall(text):
        target = resolve(path, name, known)
        if target is not None:
            if room_of(target) not in {room} | MAY_INCLUDE[room]:
                yield f"{path}: {room} includes {target}"
        elif bracket == '"':
            yield f'{path}: "{name}" is not a file of this project'
        elif PYTHON_HEADER.match(name) and room != "bindings":
            yield f"{path}: only bindings/ includes <{name}>"
        elif CUDA_HEADER.match(name) and room != "csrc/cuda":
            yield f"{path}: only csrc/cuda includes <{name}>"
        elif room == "csrc/include" and not STANDARD_HEADER.fullmatch(name):
            yield f"{path}: <{name}> is not in the C++20 standard library"
    if room == "bindings" and re.search(r"\bclass_\s*<", text):
        yield f"{path}: binds a C++ class"


def cxx_files() -> dict[str, str]:
    return {
        file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
        for top in ("csrc", "bindings", "tests/cpp")
        for file in sorted((ROOT / top).rglob("*"))
        if file.suffix in CXX_SUFFIXES
    }


def test_cxx_includes() -> None:
    files = cxx_files()
    assert "csrc/include/pysubmod/types.hpp" in files
    assert [v for path, text in files.items() for v in cxx_violations(path, text, set(files))] == []


KNOWN = {
    "csrc/include/pysubmod/types.hpp",
    "csrc/cpu/kernels.hpp",
    "csrc/cuda/device.hpp",
    "bindings/arrays.hpp",
    "tests/cpp/check.hpp",
}


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("csrc/include/pysubmod/a.hpp", '#include "../../cpu/kernels.hpp"', "includes csrc/cpu"),
        ("csrc/include/pysubmod/a.hpp", '#include "cpu/kernels.hpp"', "includes csrc/cpu"),
        ("csrc/include/pysubmod/a.hpp", "#include <cpu/kernels.hpp>", "includes csrc/cpu"),
        ("csrc/include/pysubmod/a.hpp", "#include <immintrin.h>", "standard library"),
        ("csrc/include/pysubmod/a.hpp", "#include <Eigen/Dense>", "standard library"),
        ("csrc/include/pysubmod/a.hpp", "# include <cuda_runtime.h>", "only csrc/cuda"),
        ("csrc/include/pysubmod/a.hpp", "#include <Python.h>", "only bindings/"),
        ("csrc/include/pysubmod/a.hpp", '#include "gone.hpp"', "not a file"),
        ("csrc/cpu/a.cpp", '#include "cuda/device.hpp"', "includes csrc/cuda"),
        ("csrc/cpu/a.cpp", "  #  include <pybind11/pybind11.h>", "only bindings/"),
        ("csrc/cpu/a.cpp", "#include <cuda_runtime_api.h>", "only csrc/cuda"),
        ("csrc/cpu/a.cpp", '#include "../../bindings/arrays.hpp"', "includes bindings"),
        ("csrc/cuda/a.cu", '#include "cpu/kernels.hpp"', "includes csrc/cpu"),
        ("csrc/cuda/a.cu", '#include "../cpu/kernels.hpp"', "includes csrc/cpu"),
        ("csrc/cuda/a.cuh", "#include <Python.h>", "only bindings/"),
        ("tests/cpp/test_a.cpp", "#include <Python.h>", "only bindings/"),
        ("bindings/a.cpp", '#include "../tests/cpp/check.hpp"', "includes tests/cpp"),
        ("bindings/a.cpp", "#include <cuda_runtime.h>", "only csrc/cuda"),
        ("bindings/a.cpp", 'py::class_<Solver>(m, "Solver");', "C++ class"),
        ("csrc/hip/a.cpp", "#include <vector>", "no known room"),
    ],
)
def test_cxx_rules_fire(path: str, line: str, complaint: str) -> None:
    violations = list(cxx_violations(path, f"// a comment\n#include <vector>\n{line}\n", KNOWN))
    assert len(violations) == 1
    assert complaint in violations[0]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("csrc/include/pysubmod/a.hpp", '#include "pysubmod/types.hpp"'),
        ("csrc/include/pysubmod/a.hpp", '#include "types.hpp"'),
        ("csrc/cpu/a.cpp", '#include "cpu/kernels.hpp"\n#include "pysubmod/types.hpp"\n#include <immintrin.h>'),
        ("csrc/cuda/a.cu", '#include "cuda/device.hpp"\n#include <cuda_runtime.h>\n#include <cub/cub.cuh>'),
        ("bindings/a.cpp", '#include <Python.h>\n#include "arrays.hpp"\n#include "cuda/device.hpp"'),
        ("tests/cpp/test_a.cpp", '#include "check.hpp"\n#include "cpu/kernels.hpp"'),
        ("csrc/cpu/a.cpp", '// #include "cuda/device.hpp"'),
    ],
)
def test_cxx_rules_allow(path: str, line: str) -> None:
    assert list(cxx_violations(path, line, KNOWN)) == []


# ---- Python ---------------------------------------------------------------------------------------------------------

EXTENSIONS = ("pysubmod._core", "pysubmod._cuda")
# The independent check: computes in NumPy what the compiled core computes, and may not lean on it.
INDEPENDENT = {f"pysubmod.{name}" for name in ("_reference", "certificate", "diagnostics", "_proof")}


def module_name(path: str) -> str:
    parts = list(Path(path).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: str, text: str) -> Iterator[str]:
    """Absolute names of all that a file imports, wherever in the file; `from a import b` gives `a` and `a.b`."""
    package = module_name(path) if path.endswith("__init__.py") else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                base = ".".join([*anchor, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0] if node.args else None
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                name = str(first.value)
                yield f"{package}.{name.lstrip('.')}" if name.startswith(".") else name


def without_types(text: str) -> str:
    """The file without what stands under `if TYPE_CHECKING:`, which never runs."""

    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            return node.orelse if getattr(node.test, "id", "") == "TYPE_CHECKING" else self.generic_visit(node)

    return ast.unparse(Drop().visit(ast.parse(text)))


def is_or_is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def python_violations(path: str, text: str) -> Iterator[str]:
    """What the rules forbid among the imports of one Python file of the package."""
    module = module_name(path)
    for name in imports(path, text):
        if any(is_or_is_in(name, extension) for extension in EXTENSIONS) and module != "pysubmod._backends":
            yield f"{path}: only _backends.py imports {name}"
        if is_or_is_in(name, "torch") and not is_or_is_in(module, "pysubmod.torch"):
            yield f"{path}: only pysubmod/torch/ imports {name}"


def leans_on_core(module: str, files: dict[str, str]) -> list[str]:
    """The chain of imports that leads from a module to the compiled core; empty if there is none.

    The package's own __init__ is left out: importing any module runs it, whatever that module uses.
    """
    named = {module_name(path): (path, without_types(text)) for path, text in files.items()}
    chains, seen = [[module]], {module}
    while chains:
        chain = chains.pop()
        for name in imports(*named[chain[-1]]):
            if is_or_is_in(name, "pysubmod._backends") or any(is_or_is_in(name, e) for e in EXTENSIONS):
                return [*chain, name]
            if name in named and name != "pysubmod" and name not in seen:
                seen.add(name)
                chains.append([*chain, name])
    return []


def python_files() -> dict[str, str]:
    return {
        file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted((ROOT / "pysubmod").rglob("*.py"))
    }


def test_python_imports() -> None:
    files = python_files()
    assert "pysubmod/_backends.py" in files
    assert [v for path, text in files.items() for v in python_violations(path, text)] == []


def test_independent_check_is_independent() -> None:
    files = python_files()
    independent = INDEPENDENT & {module_name(path) for path in files}
    assert "pysubmod._reference" in independent
    assert [chain for module in sorted(independent) if (chain := leans_on_core(module, files))] == []


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("pysubmod/a.py", "import pysubmod._core", "only _backends.py"),
        ("pysubmod/a.py", "from pysubmod import _core", "only _backends.py"),
        ("pysubmod/a.py", "from pysubmod._cuda import devices", "only _backends.py"),
        ("pysubmod/a.py", "from . import _core", "only _backends.py"),
        ("pysubmod/a.py", "from ._core import solve", "only _backends.py"),
        ("pysubmod/_reference.py", "from . import _cuda as fast", "only _backends.py"),
        ("pysubmod/solvers/a.py", "from .. import _core", "only _backends.py"),
        ("pysubmod/solvers/__init__.py", "from .._core import solve", "only _backends.py"),
        ("pysubmod/a.py", "def f():\n    from . import _core", "only _backends.py"),
        ("pysubmod/a.py", "import importlib\nimportlib.import_module('pysubmod._core')", "only _backends.py"),
        ("pysubmod/a.py", "__import__('torch')", "only pysubmod/torch/"),
        ("pysubmod/a.py", "import torch", "only pysubmod/torch/"),
        ("pysubmod/a.py", "def f():\n    from torch.nn import functional", "only pysubmod/torch/"),
        ("pysubmod/_backends.py", "import torch", "only pysubmod/torch/"),
        ("pysubmod/torch/a.py", "from .. import _core", "only _backends.py"),
    ],
)
def test_python_rules_fire(path: str, line: str, complaint: str) -> None:
    violations = list(python_violations(path, f"import numpy as np\n{line}\n"))
    assert violations
    assert all(complaint in violation for violation in violations)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pysubmod/_backends.py", "from . import _core as core\nfrom . import _cuda"),
        ("pysubmod/a.py", "from ._backends import core\nfrom . import torch\nfrom .torch import hooks"),
        ("pysubmod/torch/a.py", "import torch\nfrom torch import Tensor"),
        ("pysubmod/a.py", "import torchvision\nname = 'torch'  # import torch"),
    ],
)
def test_python_rules_allow(path: str, line: str) -> None:
    assert list(python_violations(path, line)) == []


@pytest.mark.parametrize(
    ("reference", "helper", "chain"),
    [
        ("from ._core import f", "", ["pysubmod._reference", "pysubmod._core"]),
        ("from ._backends import core", "", ["pysubmod._reference", "pysubmod._backends"]),
        ("from . import helper", "from . import _backends", None),
        ("def f():\n    from .helper import g", "import pysubmod._backends", None),
        ("from . import other", "from . import _backends", []),
        ("if TYPE_CHECKING:\n    from .helper import g", "from . import _backends", []),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from .helper import g", "from . import _backends", None),
        ("import numpy as np\nfrom .helper import g", "import numpy as np", []),
    ],
)
def test_independence_rule_fires(reference: str, helper: str, chain: list[str] | None) -> None:
    files = {
        "pysubmod/__init__.py": "from ._backends import core",
        "pysubmod/_reference.py": reference,
        "pysubmod/helper.py": helper,
        "pysubmod/other.py": "",
    }
    found = leans_on_core("pysubmod._reference", files)
    if chain is None:
        chain = ["pysubmod._reference", "pysubmod.helper", "pysubmod._backends"]
    assert found == chain
