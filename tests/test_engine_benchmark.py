"""The engine's benchmark and support table run, and say what the documentation says; speeds are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from levelt.models.anatomy import ARCHITECTURES

ROOT = Path(__file__).parents[1]


def run(module: str, *arguments: str) -> list[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_benchmark_ends_with_the_promised_json():
    lines = run("benchmarks.engine", "--shape", "toy", "--prompts", "8", "--rounds", "1")
    result = json.loads(lines[-1])
    for key in (
        "capture_over_forward",
        "sweep_over_forward",
        "speedup_vs_transformerlens",
        "speedup_vs_nnsight",
        "speedup_vs_released",
        "rss_5000_over_500",
    ):
        assert key in result
        assert result[key] > 0 if result[key] is not None else "not installed" in result["notes"][key]
        assert any(line.startswith(f"{key} ") for line in lines)


def test_device_mode_runs_at_a_toy_shape():
    result = json.loads(
        run("benchmarks.engine", "--mode", "device", "--shape", "toy", "--prompts", "4", "--rounds", "1")[-1]
    )
    assert result["kernels_agree"] and 0 < result["flops_over_matrix_rate"] < 1
    assert result["capture_over_forward"] > 0


def test_the_peers_read_what_the_engine_reads():
    """The check that stands in front of every comparison, and its twin."""
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.engine import agree
    finally:
        sys.path.remove(str(ROOT))
    values = np.arange(6.0).reshape(2, 3)
    agree({"a": values}, {"a": values + 1e-6}, "peer")
    with pytest.raises(SystemExit, match="peer read something else: a differs by"):
        agree({"a": values}, {"a": values + 1e-2}, "peer")


def test_support_table_of_the_documentation_is_what_the_checks_say():
    printed = [line for line in run("benchmarks.support") if line.startswith("| `")]
    page = (ROOT / "docs/engine.md").read_text().split("## Supported models")[1].split("\n## ")[0]
    written = [line for line in page.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in printed] == sorted(ARCHITECTURES)
    errors = [float(line.split("|")[-2]) for line in printed]
    assert max(errors) < 1e-5
    assert [line.split("|")[:-2] for line in printed] == [line.split("|")[:-2] for line in written], (
        "run python -m benchmarks.support and put its table into docs/engine.md"
    )
