"""The design shows in the tree: imports point downwards only, and packages re-export nothing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

FLOORS = {
    "cli": 6,
    "commands": 6,
    "studies": 5,
    "engine": 4,
    "organisms": 4,
    "prompts": 3,
    "world": 2,
    "models": 2,
    "probes": 2,
    "statistics": 2,
    "ledger": 2,
    "config": 1,
    "vocabulary": 0,
    "randomness": 0,
    "files": 0,
    "marks": 0,
    "typesetting": 1,
    "figures": 1,
}
"""Package or module -> floor (design: six floors, no circle)."""


def imports(path: Path) -> set[str]:
    """Top-level parts of levelt that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("levelt"):
            rest = node.module.split(".")[1:]
            names |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("levelt.")}
    return names - {"__version__"}


def test_imports_point_downwards(root: Path) -> None:
    source = root / "src" / "levelt"
    for path in source.rglob("*.py"):
        part = path.relative_to(source).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for name in imports(path) - {part}:
            assert FLOORS[name] < FLOORS[part] or (part, name) == ("cli", "commands"), f"{path.name} imports {name}"


def test_packages_re_export_nothing(root: Path) -> None:
    """The import walker and the floors rely on it: a name has one address."""
    for path in (root / "src" / "levelt").rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert all(isinstance(node, ast.Expr | ast.Assign) for node in body), path


def test_no_unfinished_marks_and_no_machine_paths(root: Path) -> None:
    from conftest import tracked_files

    unfinished = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|NotImplemented" + r"Error)\b")
    for name in tracked_files():
        if name.endswith((".py", ".smk", ".md", ".yaml", ".tex", ".toml", ".lock")) or "/" not in name:
            text = (root / name).read_text(encoding="utf-8")
            assert not unfinished.search(text), name
            assert str(root) + "/" not in text, name
            if name.endswith(".lock"):
                assert "://" not in text, name
