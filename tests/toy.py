"""A toy study in a git repository of its own, run and recorded: what the ledger's tests clone, tamper with and kill."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "config/toy.yaml"


@dataclass(frozen=True)
class Toy:
    """A checkout of the toy study."""

    path: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program there, with the repository's own levelt."""
        return subprocess.run(command, cwd=self.path, env=environment(), capture_output=True, text=True)

    def must(self, *command: str) -> str:
        """Run a program that has to succeed."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def ledger(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `levelt ledger ACTION` there."""
        return self.run(sys.executable, "-m", "levelt.cli", "ledger", action, "--config", CONFIG, *arguments)

    def snakemake(self, *arguments: str) -> str:
        """Run snakemake there."""
        return self.must(sys.executable, "-m", "snakemake", "--cores", "1", *arguments)

    def dvc(self, *arguments: str) -> str:
        """Run dvc there."""
        return self.must(sys.executable, "-m", "dvc", *arguments)

    def findings(self, *arguments: str) -> dict[str, str]:
        """Path -> problems, as `levelt ledger verify` says it."""
        done = self.ledger("verify", "--json", *arguments)
        assert done.stdout.startswith("{"), done.stderr
        tree: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (0 if tree["ok"] else 1)
        found: dict[str, str] = {}
        for finding in tree["findings"]:
            found[finding["path"]] = "; ".join([*filter(None, [found.get(finding["path"])]), finding["problem"]])
        return found

    def clone(self, target: Path) -> Toy:
        """A fresh git clone, nothing pulled."""
        subprocess.run(["git", "clone", "-q", str(self.path), str(target)], check=True)
        return Toy(target)

    def save(self, message: str = "x") -> None:
        """Commit everything to git."""
        self.must("git", "add", "-A")
        self.must("git", "-c", "user.name=toy", "-c", "user.email=toy@example.org", "commit", "-qm", message)

    def shuffle_times(self, seed: int) -> None:
        """Give every file of the working tree a random time, some of them in the future."""
        draw = random.Random(seed)
        for path in self.path.rglob("*"):
            if path.is_file() and not {".git", ".dvc"} & set(path.relative_to(self.path).parts):
                moment = time.time() + draw.uniform(-3e8, 3e7)
                os.utime(path, (moment, moment))


def environment() -> dict[str, str]:
    """The test's own levelt and Python first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": path, "DVC_NO_ANALYTICS": "1"}


def make_toy(folder: Path) -> Toy:
    """Run, record and publish the toy study in ``folder``."""
    toy = Toy(folder)
    shutil.copytree(ROOT / "tests/toy_study/src", folder / "src")
    for source, target in {
        "tests/toy_study/Snakefile": "Snakefile",
        "tests/toy_study/report.tex": "paper/report.tex",
        "profiles/default/profile.yaml": "profiles/default/profile.yaml",
        ".dvc/config": ".dvc/config",
        ".dvc/.gitignore": ".dvc/.gitignore",
        ".gitignore": ".gitignore",
        "requirements.lock": "requirements.lock",
    }.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, folder / target)
    (folder / "raw.csv").write_text("x,y\n1,0.25\n")
    tree = yaml.safe_load((ROOT / "config/smoke.yaml").read_text(encoding="utf-8"))
    (folder / "config").mkdir()
    (folder / CONFIG).write_text(yaml.safe_dump({**tree, "study": "toy", "seed": 1}), encoding="utf-8")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    toy.must(sys.executable, "-m", "levelt.cli", "ledger", "stages", "--config", CONFIG)
    toy.save("the study")
    toy.snakemake()
    assert (done := toy.ledger("commit")).returncode == 0, done.stderr
    assert (done := toy.ledger("publish")).returncode == 0, done.stderr
    toy.save("its results")
    return toy
