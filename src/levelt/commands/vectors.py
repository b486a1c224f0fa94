"""Instruction vectors of one model: behaviour, patching grid, separability and traced paths."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd
import torch
import transformers
from threadpoolctl import threadpool_limits

from levelt.config import Engine, Settings, Vectors
from levelt.engine.frozen import Freezer
from levelt.files import InputError, read_json, write_parquet
from levelt.models.loading import load_model
from levelt.studies.vectors.cases import behaviour, cases_of
from levelt.studies.vectors.patching import patch_case
from levelt.studies.vectors.separability import instruction_vectors, projection_table, separability_table
from levelt.studies.vectors.tracing import trace_case

log = logging.getLogger(__name__)

FILES = ("behaviour", "effects", "separability", "projection", "tokens", "heads", "sums")
"""What is written into the model's folder, as Parquet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `levelt vectors`."""
    parser.add_argument("--settings", required=True, help="JSON with the keys seed, vectors, engine, statistics")
    parser.add_argument("--model-manifest", required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--queries", type=Path, required=True, help="queries and answers (.parquet)")
    parser.add_argument("--instructions", type=Path, required=True, help="instructions and wordings (.parquet)")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {', '.join(FILES)} (.parquet)")


def run(arguments: argparse.Namespace) -> None:
    """Load the model once, with eager attention, whose weights the tracer needs; measure; write."""
    settings = Settings.from_json(arguments.settings)
    engine: Engine = settings.engine
    vectors: Vectors = settings.vectors
    torch.set_num_threads(engine.threads)
    transformers.logging.disable_progress_bar()
    if not Path(arguments.model_manifest).is_file():
        raise InputError(f"{arguments.model_manifest}: no such model manifest")
    manifest = read_json(arguments.model_manifest)
    queries, instructions = pd.read_parquet(arguments.queries), pd.read_parquet(arguments.instructions)
    decoder = load_model(manifest, engine.dtype, engine.device, "eager")
    freezer = Freezer(decoder)
    with threadpool_limits(engine.threads):
        cases = cases_of(decoder, manifest["id"], queries, instructions, vectors, settings.seed)
        tables = {"behaviour": behaviour(decoder, cases, engine.batch_tokens)}
        log.info("%s: behaviour measured", manifest["id"])
        effects = [patch_case(decoder, case, vectors, engine.batch_tokens) for case in cases]
        tables["effects"] = pd.concat(effects, ignore_index=True)
        log.info("%s: %d effects of patches", manifest["id"], len(tables["effects"]))
        rows, states = instruction_vectors(decoder, cases)
        tables["separability"] = separability_table(rows, states, vectors, settings.statistics, settings.seed)
        tables["projection"] = projection_table(rows, states)
        log.info("%s: separability of %d instructions", manifest["id"], len(rows))
        traced = [trace_case(decoder, freezer, case, vectors) for case in cases]
    for name in ("tokens", "heads", "sums"):
        tables[name] = pd.concat([getattr(trace, name) for trace in traced], ignore_index=True)
    for name in FILES:
        write_parquet(arguments.out / f"{name}.parquet", tables[name])
