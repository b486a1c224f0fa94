"""Kill the smoke study at random moments, and see that it completes, is recorded and verified: nothing half-written.

`python -m benchmarks.kill_study --kills 10`. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "config/smoke.yaml"


def main() -> None:
    """Run, kill, resume; then commit and verify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=40.0, help="seconds after which a run is killed at the latest")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="levelt-kill-") as name:
        work = Path(name) / "work"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(work)], check=True)
        shutil.rmtree(work / "data/remote", ignore_errors=True)
        environment = {**os.environ, "PYTHONPATH": str(work / "src")}

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            words = [sys.executable, "-m", *command]
            return subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True)

        study = ["snakemake", "--cores", "2", "--configfile", CONFIG]
        kills, unreadable = 0, 0
        while kills < arguments.kills:
            words = [sys.executable, "-m", *study]
            process = subprocess.Popen(words, cwd=work, env=environment, start_new_session=True, stderr=-3, stdout=-3)
            try:
                process.wait(draw.uniform(2, arguments.longest))
                break  # done before the moment came
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
            time.sleep(0.5)
            run(*study, "--unlock")
            unreadable += sum(path.stat().st_size == 0 for path in (work / "data").rglob("*.parquet"))
        done = run(*study)
        run("levelt.cli", "ledger", "stages", "--config", CONFIG)
        recorded = run("levelt.cli", "ledger", "commit", "--config", CONFIG)
        verified = run("levelt.cli", "ledger", "verify", "--config", CONFIG)
        print(done.stderr[-4000:], recorded.stderr, verified.stdout)
        left = [str(p) for p in (work / "data").rglob(".*") if p.is_file() and p.name != ".snakemake_timestamp"]
        result = {
            "kills": kills,
            "completed": done.returncode == 0,
            "recorded": recorded.returncode == 0,
            "verified": verified.returncode == 0,
            "empty_files_seen": unreadable,
            "temporary_files_left": len(left),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
