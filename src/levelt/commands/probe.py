"""Probe the activations of one model on tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from threadpoolctl import threadpool_limits

from levelt.config import Settings
from levelt.files import InputError, read_arrays, write_parquet
from levelt.studies.controls import controls_task
from levelt.studies.information import probe_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt probe`."""
    parser.add_argument("--settings", required=True, help="JSON with the keys seed, probes, statistics")
    parser.add_argument("--model", required=True, help="checkpoint id")
    parser.add_argument("--tasks", nargs="+", required=True, help="names of the tasks")
    parser.add_argument("--conditions", nargs="+", required=True, help="names of the conditions")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="prompts of each task (.parquet)")
    parser.add_argument("--activations", type=Path, required=True, help="folder of <task>/<condition>.safetensors")
    parser.add_argument(
        "--probes", type=Path, required=True, help="folder for the scores, <task>.parquet, and <task>.controls.parquet"
    )
    parser.add_argument("--hits", type=Path, required=True, help="folder for the out-of-fold hits, <task>.parquet")


def run(arguments: argparse.Namespace) -> None:
    """Read, probe, write, task by task."""
    settings = Settings.from_json(arguments.settings)
    probes, model = settings.probes, arguments.model
    if len(arguments.tasks) != len(arguments.prompts):
        found = f"{len(arguments.tasks)} tasks and {len(arguments.prompts)} prompts files"
        raise InputError(f"found {found}, expected one for each")
    files = {
        task: {name: arguments.activations / task / f"{name}.safetensors" for name in arguments.conditions}
        for task in arguments.tasks
    }
    for path in (path for of_task in files.values() for path in of_task.values()):
        if not path.is_file():
            raise InputError(f"{path}: no such activations")
    for task, path in zip(arguments.tasks, arguments.prompts, strict=True):
        prompts = pd.read_parquet(path)
        activations = {name: read_arrays(file)[0] for name, file in files[task].items()}
        with threadpool_limits(1):  # results of threaded sums depend on the number of threads
            result = probe_task(prompts, activations, probes, settings.statistics, settings.seed, task)
            controls = controls_task(prompts, activations, probes, settings.seed, task, model)
        names = {"model": model, "task": task}
        write_parquet(arguments.probes / f"{task}.parquet", result.probes.assign(**names))
        write_parquet(arguments.hits / f"{task}.parquet", result.hits.assign(**names), quick=True)
        write_parquet(arguments.probes / f"{task}.controls.parquet", controls.assign(**names))
