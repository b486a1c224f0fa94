"""Audit the released methods on one model: each defect alone, and corrected, on the same prompts of each task."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
import transformers

from levelt.commands.read import INTERVENED, behaviour_table, prompts_table
from levelt.config import Settings
from levelt.engine.plans import CONDITIONS
from levelt.engine.run import Condition, read_conditions
from levelt.files import InputError, read_json, write_parquet
from levelt.models.loading import Decoder, load_model
from levelt.prompts.render import from_table
from levelt.studies.audit import MASKING
from levelt.studies.audit_hits import variation_hits
from levelt.studies.audit_rows import PLAIN, ROLES, audit_rows
from levelt.studies.scope import PUBLISHED_VARIATIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt audit`."""
    parser.add_argument("--settings", required=True, help="JSON with the keys seed, engine, probes, statistics")
    parser.add_argument("--model-manifest", type=Path, required=True, help="manifest.json of the checkpoint")
    parser.add_argument("--tasks", nargs="+", required=True, help="names of the tasks")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="the model's prompts of each (.parquet)")
    parser.add_argument("--out", type=Path, required=True, help="folder for <task>.parquet and <task>.hits.parquet")


def run(arguments: argparse.Namespace) -> None:
    """Check every task's prompts, load the model, audit task by task."""
    settings = Settings.from_json(arguments.settings)
    torch.set_num_threads(settings.engine.threads)
    transformers.logging.disable_progress_bar()
    if len(arguments.tasks) != len(arguments.prompts):
        counts = f"{len(arguments.tasks)} tasks and {len(arguments.prompts)} prompts files"
        raise InputError(f"found {counts}, expected one for each")
    manifest = read_json(arguments.model_manifest)
    tables = {}
    for task, path in zip(arguments.tasks, arguments.prompts, strict=True):
        tables[task] = prompts_table(path)
        if not (tables[task]["condition"] == INTERVENED).any():
            raise InputError(f"{path}: no prompts of the condition {INTERVENED}, which the audit reads")
    decoder = load_model(manifest, settings.engine.dtype, settings.engine.device, settings.engine.attention)
    for task, every in tables.items():
        rows, hits = _audited(task, every, decoder, settings, f"{manifest['id']} {task} audit")
        names = {"model": manifest["id"], "task": task}
        write_parquet(arguments.out / f"{task}.parquet", rows.assign(**names))
        write_parquet(arguments.out / f"{task}.hits.parquet", hits.assign(**names))


def _audited(
    task: str, every: pd.DataFrame, decoder: Decoder, settings: Settings, label: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the instruction_first prompts right and with each defect, probe them, compare; probe the variations."""
    table = every[every["condition"] == INTERVENED].reset_index(drop=True)
    prompts = from_table(table)
    conditions: dict[str, Condition] = {PLAIN: None}
    conditions |= {masking.block: CONDITIONS[masking.block] for masking in MASKING}
    conditions |= {f"{masking.defect}: {masking.block}": masking.released for masking in MASKING}
    options = [prompt.option_ids for prompt in prompts]
    readings = read_conditions(decoder, prompts, conditions, ROLES, options, settings.engine, label)
    exact = {name: behaviour_table(table, found, decoder)["exact_match"] for name, found in readings.items()}
    rows = audit_rows(table, readings, exact, settings.probes, settings.statistics, settings.seed, task)
    variations = {INTERVENED: readings[PLAIN]}
    for name in PUBLISHED_VARIATIONS:
        others = from_table(every[every["condition"] == name])
        if others and name not in variations:
            found = read_conditions(
                decoder, others, {PLAIN: None}, ROLES, [one.option_ids for one in others], settings.engine, label
            )
            variations[name] = found[PLAIN]
    return rows, variation_hits(every, variations, settings.probes, settings.seed, task)
