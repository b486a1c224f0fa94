"""Kill a study at random moments and its recording too; see that it completes, is verified, and is the same again.

`python -m benchmarks.kill_study --kills 10 --commit-kills 5` clones the repository, runs the smoke study in the clone
(`--config` names another, `--longest` the longest time a run gets before it is killed), and kills it. With
`--reference FOLDER`, a checkout where the same study was made, every artifact is compared with the one there: a second
regeneration. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from levelt.files import sha256

ROOT = Path(__file__).resolve().parents[1]


class Clone:
    """A clone of the repository in which one study runs."""

    def __init__(self, path: Path, config: str, cores: str) -> None:
        self.path, self.config = path, config
        self.name: str = yaml.safe_load((ROOT / config).read_text(encoding="utf-8"))["study"]
        self.study = ["snakemake", "--cores", cores, "--configfile", config]
        if not path.exists():
            subprocess.run(["git", "clone", "-q", str(ROOT), str(path)], check=True)
        self.environment = {**os.environ, "PYTHONPATH": str(path / "src")}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a module of this Python there, to its end."""
        words = [sys.executable, "-m", *command]
        return subprocess.run(words, cwd=self.path, env=self.environment, capture_output=True, text=True)

    def ledger(self, action: str) -> subprocess.CompletedProcess[str]:
        """`levelt ledger ACTION`."""
        return self.run("levelt.cli", "ledger", action, "--config", self.config)

    def killed(self, command: Sequence[str], after: float) -> bool:
        """Start a module and kill it and all its children after some seconds; false if it had finished."""
        words = [sys.executable, "-m", *command]
        process = subprocess.Popen(
            words, cwd=self.path, env=self.environment, start_new_session=True, stderr=-3, stdout=-3
        )
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        return False

    def half_written(self) -> list[str]:
        """Files that a reader could take for whole ones and are not."""
        empty = [path for path in (self.path / "data" / self.name).rglob("*.*") if path.is_file()]
        return [str(path) for path in empty if not path.name.startswith(".") and path.stat().st_size == 0]

    def temporary(self) -> list[str]:
        """Temporary files under the study's folders."""
        found = (path for root in ("data", "figures", "paper") for path in (self.path / root / self.name).rglob(".*"))
        return [str(path) for path in found if path.is_file() and path.name != ".snakemake_timestamp"]


def compare(clone: Clone, reference: Path) -> dict[str, Any]:
    """Every recorded artifact of the clone against the same path in another checkout, by SHA-256."""
    book = json.loads((clone.path / f"docs/provenance/{clone.name}.json").read_text(encoding="utf-8"))
    made = sorted({path for job in book["jobs"] for path in job["outputs"]})
    absent = [path for path in made if not (reference / path).is_file()]
    differ = [path for path in made if path not in absent and sha256(reference / path) != book["files"][path][0]]
    return {"artifacts": len(made), "identical": len(made) - len(absent) - len(differ), "different": differ,
            "not_in_reference": absent}  # fmt: skip


def main() -> None:
    """Run, kill, resume; record, kill, resume; verify; compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="config/smoke.yaml")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--commit-kills", type=int, default=5)
    parser.add_argument("--longest", type=float, default=40.0, help="seconds after which a run is killed at the latest")
    parser.add_argument("--cores", default="2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, help="a checkout to compare every artifact with")
    parser.add_argument("--work", type=Path, help="folder of the clone; kept, and continued if it exists")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="levelt-kill-") as folder:
        clone = Clone(arguments.work or Path(folder) / "work", arguments.config, arguments.cores)
        kills, half = 0, 0
        while kills < arguments.kills and clone.killed(clone.study, draw.uniform(2, arguments.longest)):
            kills += 1
            time.sleep(0.5)
            clone.run(*clone.study, "--unlock")
            half += len(clone.half_written())
        done = clone.run(*clone.study)
        clone.ledger("stages")
        commit = ["levelt.cli", "ledger", "commit", "--config", arguments.config]
        commit_kills, window = 0, 30.0
        while commit_kills < arguments.commit_kills and window > 1:
            started = time.monotonic()
            if clone.killed(commit, draw.uniform(0.5, window)):
                commit_kills += 1
            else:  # recorded before the moment came: forget it, and come earlier
                window = 0.9 * (time.monotonic() - started)
                (clone.path / "dvc.lock").unlink(missing_ok=True)
                (clone.path / f"docs/provenance/{clone.name}.json").unlink(missing_ok=True)
        recorded = clone.ledger("commit")
        verified = clone.ledger("verify")
        print(done.stderr[-4000:] if done.returncode else "", recorded.stderr, verified.stdout)
        result: dict[str, Any] = {
            "study": clone.name,
            "kills": kills,
            "completed": done.returncode == 0,
            "half_written_seen": half,
            "commit_kills": commit_kills,
            "recorded": recorded.returncode == 0,
            "verified": verified.returncode == 0,
            "temporary_files_left": clone.temporary(),
        }
        if arguments.reference and recorded.returncode == 0:
            result["compared"] = compare(clone, arguments.reference.resolve())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
