"""Fresh clones with shuffled file times: does `dvc pull` end in "Nothing to be done"?

`python -m benchmarks.clone_pull` clones this repository five times, pulls the bundled remote, gives every file a random
time and asks for a dry run; then one clone pulls the figures only. `--source` names another checkout, `--config` its
study. Times are of clone and pull, without making the environment. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def run(clone: Path, *command: str) -> str:
    """A module of this Python with the clone's own code; what it says."""
    environment = {**os.environ, "PYTHONPATH": str(clone / "src"), "DVC_NO_ANALYTICS": "1"}
    words = [sys.executable, "-m", *command]
    done = subprocess.run(words, cwd=clone, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout + done.stderr


def shuffle_times(clone: Path, seed: int) -> None:
    """Every file of the working tree gets a random time of the last ten years, or of the next one."""
    draw = random.Random(seed)
    for path in clone.rglob("*"):
        if path.is_file() and not {".git", ".dvc"} & set(path.relative_to(clone).parts):
            moment = time.time() + draw.uniform(-3e8, 3e7)
            os.utime(path, (moment, moment))


def pulled(source: Path, clone: Path, *outs: str) -> float:
    """Clone, and pull all or some outs; seconds."""
    started = time.monotonic()
    subprocess.run(["git", "clone", "-q", "--no-local", str(source), str(clone)], check=True)
    run(clone, "dvc", "pull", *outs)
    return time.monotonic() - started


def main() -> None:
    """Clone, pull, shuffle, plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("--config", default="config/organisms.yaml")
    parser.add_argument("--clones", type=int, default=5)
    arguments = parser.parse_args()
    study = yaml.safe_load((arguments.source / arguments.config).read_text(encoding="utf-8"))["study"]
    plan = ["snakemake", "--cores", "1", "--configfile", arguments.config, "--dry-run"]
    with tempfile.TemporaryDirectory(prefix="levelt-clones-") as folder:
        clean, seconds = 0, []
        for number in range(arguments.clones):
            clone = Path(folder) / f"clone{number}"
            seconds.append(round(pulled(arguments.source, clone), 1))
            shuffle_times(clone, number)
            said = run(clone, *plan)
            clean += "Nothing to be done" in said and "missing provenance" not in said
            print(f"clone {number}: {seconds[-1]} s, {'nothing to be done' if clean > number else said[-2000:]}")
        verified = run(clone, "levelt.cli", "ledger", "verify", "--config", arguments.config).strip().splitlines()[-1]
        clone = Path(folder) / "figures"
        part = round(pulled(arguments.source, clone, ".snakemake/metadata", f"figures/{study}"), 1)
        shuffle_times(clone, arguments.clones)
        pictures = sorted(str(path.relative_to(clone)) for path in (clone / "figures" / study).glob("*.pdf"))
        figures = "Nothing to be done" in run(clone, *plan, "--", *pictures)
    print(
        json.dumps(
            {
                "clones": arguments.clones,
                "nothing_to_be_done": clean,
                "seconds": seconds,
                "verify": verified,
                "figures_only": {"figures": len(pictures), "nothing_to_be_done": figures, "seconds": part},
            }
        )
    )


if __name__ == "__main__":
    main()
