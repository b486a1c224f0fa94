"""The import walker finds what really runs: no less (stale results) and no more (needless reruns)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from levelt.ledger.code import SOURCE, code_files


def loaded_by(module: str) -> set[str]:
    """Files of levelt that Python has loaded after importing ``module`` in a fresh process."""
    program = (
        f"import sys, {module}\n"
        "print(*[m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'levelt'], sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {str(Path(line).resolve().relative_to(SOURCE)) for line in done.stdout.splitlines()}


@pytest.mark.parametrize("command", ["probe", "tables", "read", "train", "samples"])
def test_walker_covers_what_an_import_loads(command: str) -> None:
    module = f"levelt.commands.{command}"
    walked = {str(path) for path in code_files(module)}
    assert loaded_by(module) <= walked


def test_separate_stages_do_not_share_code() -> None:
    figure = {str(path) for path in code_files("levelt.commands.figure", "levelt.figures.behaviour")}
    assert "levelt/figures/behaviour.py" in figure
    assert not {path for path in figure if path.startswith(("levelt/engine", "levelt/probes", "levelt/world"))}
    roles = {"levelt/engine/__init__.py", "levelt/engine/roles.py"}  # which site a role reads, no more
    probe = {str(path) for path in code_files("levelt.commands.probe")} - roles
    assert not {path for path in probe if path.startswith(("levelt/figures", "levelt/engine", "levelt/organisms"))}


def test_import_forms(tmp_path: Path) -> None:
    package = tmp_path / "levelt"
    (package / "sub").mkdir(parents=True)
    for name in ["__init__", "a", "b", "c", "d", "e", "sub/__init__", "sub/f"]:
        (package / f"{name}.py").write_text("")
    (package / "a.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import json\n"
        "import levelt.b\n"
        "from levelt import c\n"
        "if TYPE_CHECKING:\n    from levelt import d\n"
        "def late():\n    from .sub.f import name\n    return name\n"
    )
    names = {str(path) for path in code_files("levelt.a", source=tmp_path)}
    expected = {"__init__.py", "a.py", "b.py", "c.py", "sub/__init__.py", "sub/f.py"}
    assert names == {f"levelt/{name}" for name in expected}
    (package / "b.py").write_text("import levelt.missing")
    code_files.__globals__["_imports"].cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"levelt\.missing"):
        code_files("levelt.a", source=tmp_path)


def test_files_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    """What the system says of a file, with its name; a traceback would hide it."""
    missing = str(tmp_path / "none.csv")
    commands = {
        f"{missing}: No such file": ["claims", "--tables", missing, "--json", "a", "--csv", "b"],
        f"{tmp_path}: Is a directory": ["config", "check", str(tmp_path)],
        "check needs a config file": ["config", "check"],
    }
    for said, words in commands.items():
        done = subprocess.run([sys.executable, "-m", "levelt.cli", *words], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("command", ["figure", "config", "samples", "tables", "probe"])
def test_light_commands_never_import_torch(command: str) -> None:
    program = f"import sys, levelt.cli, levelt.commands.{command}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
