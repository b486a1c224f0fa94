"""The machine and the libraries a run used; which libraries matter is read from the code that ran."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

LOCK = Path("requirements.lock")
IMPLIED = {"transformers": ("tokenizers", "safetensors"), "pandas": ("numpy", "pyarrow"), "seaborn": ("matplotlib",)}
"""Libraries that decide results although the code imports them only through another one."""


def libraries_of(code: Iterable[str]) -> list[str]:
    """Distributions that the given code files import (standard library and levelt left out), sorted."""
    modules = {module for path in code if path.endswith(".py") and Path(path).is_file() for module in _imported(path)}
    owners = _owners()
    direct = {owner for module in modules for owner in owners.get(module, [])}
    return sorted(direct | {implied for name in direct for implied in IMPLIED.get(name, ())})


def environment(libraries: Iterable[str]) -> dict[str, Any]:
    """Python, machine, lock file and versions of ``libraries``: what a result can depend on beside code and data."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "gpu": _gpus(),
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest() if LOCK.is_file() else None,
        "libraries": {name: _installed(name) for name in sorted(libraries)},
    }


def name_of(tree: Mapping[str, Any]) -> str:
    """A short name for an environment, from its content."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def locked(path: Path = LOCK) -> dict[str, str]:
    """Library -> version that the lock file pins."""
    if not path.is_file():
        return {}
    pins = re.findall(r"^([\w.-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {_normal(name): version for name, version in pins}


def same_version(one: str | None, other: str | None) -> bool:
    """Whether two versions are the same release; a build for another accelerator (2.13.0+cu126) is."""
    return (one or "").split("+")[0] == (other or "").split("+")[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def _owners() -> dict[str, list[str]]:
    return {module: [_normal(n) for n in names] for module, names in metadata.packages_distributions().items()}


@cache
def _imported(path: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return frozenset(names - set(sys.stdlib_module_names) - {"levelt"})


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found.group(1) if found else platform.processor()


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
