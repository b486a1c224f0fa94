"""Audit the released methods on one model and task: each defect alone, and corrected, on the same prompts."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers

from levelt.commands.read import INTERVENED, behaviour_table, prompts_table
from levelt.config import Settings
from levelt.engine.plans import CONDITIONS
from levelt.engine.run import Condition, read_conditions
from levelt.files import InputError, read_json, write_parquet
from levelt.models.loading import load_model
from levelt.prompts.render import from_table
from levelt.studies.audit import MASKING
from levelt.studies.audit_hits import variation_hits
from levelt.studies.audit_rows import PLAIN, ROLES, audit_rows
from levelt.studies.scope import PUBLISHED_VARIATIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt audit`."""
    parser.add_argument("--settings", required=True, help="JSON with the keys seed, engine, probes, statistics")
    parser.add_argument("--model-manifest", type=Path, required=True, help="manifest.json of the checkpoint")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts of this model and task (.parquet)")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument("--out", type=Path, required=True, help="where to write the rows (.parquet)")
    parser.add_argument("--hits", type=Path, required=True, help="where to write the hits of the variations (.parquet)")


def run(arguments: argparse.Namespace) -> None:
    """Read the instruction_first prompts right and with each defect, probe them, compare; probe the variations."""
    settings = Settings.from_json(arguments.settings)
    torch.set_num_threads(settings.engine.threads)
    transformers.logging.disable_progress_bar()
    manifest = read_json(arguments.model_manifest)
    every = prompts_table(arguments.prompts)
    table = every[every["condition"] == INTERVENED].reset_index(drop=True)
    if table.empty:
        raise InputError(f"{arguments.prompts}: no prompts of the condition {INTERVENED}, which the audit reads")
    decoder = load_model(manifest, settings.engine.dtype, settings.engine.device, settings.engine.attention)
    prompts = from_table(table)
    conditions: dict[str, Condition] = {PLAIN: None}
    conditions |= {masking.block: CONDITIONS[masking.block] for masking in MASKING}
    conditions |= {f"{masking.defect}: {masking.block}": masking.released for masking in MASKING}
    options = [prompt.option_ids for prompt in prompts]
    label = f"{manifest['id']} {arguments.task} audit"
    readings = read_conditions(decoder, prompts, conditions, ROLES, options, settings.engine, label)
    exact = {name: behaviour_table(table, found, decoder)["exact_match"] for name, found in readings.items()}
    rows = audit_rows(table, readings, exact, settings.probes, settings.statistics, settings.seed, arguments.task)
    variations = {INTERVENED: readings[PLAIN]}
    for name in PUBLISHED_VARIATIONS:
        others = from_table(every[every["condition"] == name])
        if others and name not in variations:
            found = read_conditions(
                decoder, others, {PLAIN: None}, ROLES, [one.option_ids for one in others], settings.engine, label
            )
            variations[name] = found[PLAIN]
    hits = variation_hits(every, variations, settings.probes, settings.seed, arguments.task)
    names = {"model": manifest["id"], "task": arguments.task}
    write_parquet(arguments.out, rows.assign(**names))
    write_parquet(arguments.hits, hits.assign(**names))
