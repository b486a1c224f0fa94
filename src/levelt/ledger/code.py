"""The code a command runs: its module and every levelt module imported from there, found without importing anything.

Rules name these files as inputs, so that an edit is seen by content (Snakemake tracks neither `script:` contents nor
imports) and only the rules that really run the edited code are planned again.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "levelt"
SOURCE = Path(__file__).resolve().parents[2]


def code_files(*modules: str, source: Path = SOURCE) -> list[Path]:
    """Files of ``modules`` and of all levelt modules they import, transitively, relative to the ``source`` folder.

    Imports inside functions count (commands import lazily on purpose); imports under ``if TYPE_CHECKING`` do not,
    because they never run. Names built at run time cannot be followed: name such a module explicitly.

    Raises:
        ModuleNotFoundError: a module named or imported does not exist under ``source``.
    """
    seen: set[str] = set()
    queue = list(modules)
    while queue:
        module = queue.pop()
        if module in seen:
            continue
        seen.add(module)
        queue.extend(_imports(module, source))
    return sorted(_file(module, source).relative_to(source) for module in seen)


def _file(module: str, source: Path) -> Path:
    stem = source.joinpath(*module.split("."))
    for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
        if candidate.is_file():
            return candidate
    raise ModuleNotFoundError(f"no module {module} under {source}")


@cache
def _imports(module: str, source: Path) -> tuple[str, ...]:
    path = _file(module, source)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: list[str] = []
    for node in _running(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([base] if base else [])])
            for alias in node.names:  # `from package import module` names a module, `from module import name` does not
                child = f"{base}.{alias.name}"
                found.append(child if _exists(child, source) else base)
    ours = [name for name in found if name == PACKAGE or name.startswith(PACKAGE + ".")]
    ancestors = [name.rsplit(".", depth)[0] for name in [*ours, module] for depth in range(1, name.count(".") + 1)]
    return tuple(dict.fromkeys([*ours, *ancestors]))


def _exists(module: str, source: Path) -> bool:
    try:
        _file(module, source)
    except ModuleNotFoundError:
        return False
    return True


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from _running(other)
            continue
        yield node
        yield from _running(node)
