"""One door for each heavy dependency: which files may import it, and which only inside functions.

import-linter keeps the arrows between our own packages (pyproject.toml); it sees an outside
package only as a whole, so it can't tell `flwr.app` from Flower's insides.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("client", "common", "server", "simulations")

DOORS = {
    "dicomweb_client": ("client/dicomweb.py",),
    "flwr": ("client/link.py", "server/link.py", "simulations/engines/"),
    "imagecodecs": ("common/data/dicom/codecs.py",),
    # The benchmark's yardstick is Opacus' own engine.
    "opacus": ("common/privacy/", "simulations/benchmarks/dp_step.py"),
    # The benchmark's yardstick is bare pydicom.
    "pydicom": ("common/data/dicom/", "simulations/benchmarks/data.py", "simulations/phantoms/"),
    "requests": ("client/dicomweb.py",),
}
OPEN_TO_ALL = ("flwr.app", "flwr.clientapp", "flwr.serverapp")  # Flower's user-facing names
# Opacus' import takes seconds: no run without privacy waits for it. Its door may import it at the
# top, and is itself opened only inside functions.
ONLY_IN_FUNCTIONS = ("opacus", "common.privacy._opacus")
LAZY_DOOR = "common/privacy/_opacus.py"


def imports(node: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Dotted names that the code below `node` imports, and whether only when a function runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield from ((f"{child.module}.{alias.name}", lazy) for alias in child.names)
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            )
            yield from imports(child, lazy or deferred)


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether the dotted name is one of these packages or inside one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def violations(file: str, code: str) -> list[str]:
    """What the code of this file imports past a door, in words."""
    found = []
    for name, lazy in imports(ast.parse(code)):
        top = name.partition(".")[0]
        if top in DOORS and not within(name, OPEN_TO_ALL) and not file.startswith(DOORS[top]):
            found.append(f"{file} imports {name}; only {', '.join(DOORS[top])} may")
        if within(name, ONLY_IN_FUNCTIONS) and not lazy and file != LAZY_DOOR:
            found.append(f"{file} imports {name} at its top; import it inside the function")
    return found


def test_heavy_dependencies_come_through_their_doors() -> None:
    """No file of the packages imports pydicom, opacus or Flower's insides past its door."""
    files = [
        ROOT / "fedward.py",
        *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")),
    ]
    found = [
        violation
        for path in files
        for violation in violations(
            path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        )
    ]
    assert len(files) > len(PACKAGES)
    assert found == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("common/metrics/auroc.py", "import pydicom"),
        ("common/data/dicom_cache.py", "import pydicom.uid as uid"),
        ("client/training.py", "def train():\n    from opacus.accountants import PRVAccountant"),
        ("common/privacy/plan.py", "from opacus import accountants"),
        ("common/privacy/plan.py", "from common.privacy._opacus import problems"),
        ("common/privacy/plan.py", "if True:\n    import opacus"),
        ("server/app.py", "from flwr.server.superlink import linkstate"),
        ("server/app.py", "from flwr import common"),
        ("fedward.py", "import flwr"),
    ],
)
def test_an_import_past_a_door_is_seen(file: str, code: str) -> None:
    """An import past its door is reported, in whatever form it is written."""
    assert violations(file, code)


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("common/data/dicom/header.py", "import pydicom"),
        ("simulations/phantoms/ild.py", "from pydicom.dataset import Dataset"),
        ("common/privacy/plan.py", "def plan():\n    from opacus.accountants import PRVAccountant"),
        ("common/privacy/plan.py", "if TYPE_CHECKING:\n    from opacus import GradSampleModule"),
        ("common/privacy/_opacus.py", "from opacus.optimizers import DPOptimizer"),
        ("client/app.py", "from flwr.clientapp import ClientApp"),
        ("common/messages.py", "from flwr.app import ArrayRecord"),
        ("simulations/engines/inline.py", "from flwr.common.constant import SUPERLINK_NODE_ID"),
    ],
)
def test_an_import_through_its_door_passes(file: str, code: str) -> None:
    """An import through its door, or of Flower's user-facing names, is nobody's business."""
    assert violations(file, code) == []
