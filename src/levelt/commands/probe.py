"""Probe the activations of one model on one task."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from threadpoolctl import threadpool_limits

from levelt.config import Settings
from levelt.files import read_arrays, write_parquet
from levelt.studies.controls import controls_task
from levelt.studies.information import probe_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt probe`."""
    parser.add_argument("--settings", required=True, help="JSON with the keys seed, probes, statistics")
    parser.add_argument("--model", required=True, help="checkpoint id")
    parser.add_argument("--task", required=True, help="task name")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts of the model and task (.parquet)")
    parser.add_argument("--activations", type=Path, nargs="+", required=True, help="<condition>.safetensors, one each")
    parser.add_argument("--probes", type=Path, required=True, help="where to write the scores (.parquet)")
    parser.add_argument("--hits", type=Path, required=True, help="where to write the out-of-fold hits (.parquet)")
    parser.add_argument("--controls", type=Path, required=True, help="where to write the controls (.parquet)")


def run(arguments: argparse.Namespace) -> None:
    """Read, probe, write."""
    settings = Settings.from_json(arguments.settings)
    prompts = pd.read_parquet(arguments.prompts)
    activations = {path.stem: read_arrays(path)[0] for path in arguments.activations}
    with threadpool_limits(1):  # results of threaded sums depend on the number of threads
        result = probe_task(prompts, activations, settings.probes, settings.statistics, settings.seed, arguments.task)
        controls = controls_task(prompts, activations, settings.probes, settings.seed, arguments.task, arguments.model)
    names = {"model": arguments.model, "task": arguments.task}
    write_parquet(arguments.probes, result.probes.assign(**names))
    write_parquet(arguments.hits, result.hits.assign(**names))
    write_parquet(arguments.controls, controls.assign(**names))
