"""Fixtures shared by the tests: the repository, the published data, and one run of the smoke study."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def published() -> Path:
    """The authors' published data files; tests that need them are skipped where they are not at hand."""
    if not PUBLISHED.is_dir():
        pytest.skip("the published data files are not at ../shared/data (they are not part of this repository)")
    return PUBLISHED


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository's files in which the workflow can run without touching the real one."""

    path: Path

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run snakemake there, with the copy's own code."""
        command = [sys.executable, "-m", "snakemake", *arguments]
        done = subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}")
        return done

    def levelt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a levelt command there."""
        command = [sys.executable, "-m", "levelt.cli", *arguments]
        return subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True)

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs by rule that a dry run would run."""
        done = self.snakemake("--dry-run", "--quiet", "host", *arguments)
        lines = done.stdout.splitlines()
        jobs: dict[str, int] = {}
        if not any(line.startswith("job ") for line in lines):
            assert "Nothing to be done" in done.stdout + done.stderr, done.stdout + done.stderr
            return jobs
        start = next(i for i, line in enumerate(lines) if line.startswith("job "))
        for line in lines[start + 2 :]:
            parts = line.split()
            if len(parts) != 2:
                break
            jobs[parts[0]] = int(parts[1])
        jobs.pop("total", None)
        return jobs

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a job: the copy's source first."""
        return {**os.environ, "PYTHONPATH": str(self.path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}


def tracked_files() -> Sequence[str]:
    """Files of the repository as they are now: tracked, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def copy_repository(target: Path) -> Checkout:
    """Copy the repository's files to ``target``."""
    for name in tracked_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return Checkout(target)


@dataclass(frozen=True)
class SmokeRun:
    """The smoke study, run once for the whole test session."""

    checkout: Checkout
    seconds: float


SMOKE = ["--configfile", "config/smoke.yaml", "--cores", "2"]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """Run the smoke study from nothing in a copy of the repository. Tests that change files must restore them."""
    checkout = copy_repository(tmp_path_factory.mktemp("smoke"))
    started = time.monotonic()
    checkout.snakemake(*SMOKE)
    return SmokeRun(checkout, time.monotonic() - started)
