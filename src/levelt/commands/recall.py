"""Run the recall study on one model: build its prompts, decode the last token, knock out, trace."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
import transformers

from levelt.config import Settings
from levelt.files import InputError, read_json, write_arrays, write_json, write_parquet
from levelt.models.loading import load_model
from levelt.studies.recall.building import build_prompts
from levelt.studies.recall.prompts import to_table
from levelt.studies.recall.reading import describe, read_steps, read_traces


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--settings",
        required=True,
        help="JSON with seed, recall, engine.{dtype,device,attention,threads,batch_tokens}, and world.subjects",
    )
    parser.add_argument("--model-manifest", required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--prompts", required=True, help="prompts to write (.parquet)")
    parser.add_argument("--decode", required=True, help="last-token decodes and knockouts to write (.safetensors)")
    parser.add_argument("--traces", required=True, help="causal traces to write (.parquet)")
    parser.add_argument("--summary", required=True, help="what was kept and left out, to write (.json)")


def run(args: argparse.Namespace) -> None:
    """Load the model once, build, read, write."""
    settings = Settings.from_json(args.settings)
    recall, seed, batch_tokens = settings["recall"], settings["seed"], settings["engine.batch_tokens"]
    torch.set_num_threads(settings["engine.threads"])
    transformers.logging.disable_progress_bar()
    if not Path(args.model_manifest).is_file():
        raise InputError(f"{args.model_manifest}: no such model manifest")
    manifest = read_json(args.model_manifest)
    model = str(manifest["id"])
    decoder = load_model(manifest, settings["engine.dtype"], settings["engine.device"], settings["engine.attention"])
    subjects = settings["world.subjects"] if recall.source.kind == "world" else 0
    prompts, dropped = build_prompts(decoder, recall, subjects, seed, model, batch_tokens)
    kept = len(prompts) // 3
    log = logging.getLogger(__name__)
    log.info("%s: %d lists kept, %d left out", model, kept, dropped.counts.total())
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for (*_, reason), count in sorted(dropped.counts.items()))
        raise InputError(
            f"{model} gives no list of three correct answers ({reasons}), so there is nothing to study; take it out of "
            f"recall.models, or set recall.lists to given"
        )
    write_parquet(args.prompts, to_table(prompts))
    write_arrays(
        args.decode, read_steps(decoder, prompts, batch_tokens), {"model": model, **describe(decoder, prompts)}
    )
    log.info("%s: decoded", model)
    write_parquet(args.traces, read_traces(decoder, prompts, recall.tracing, seed, batch_tokens), quick=True)
    write_json(
        args.summary,
        {
            "model": model,
            "kept": kept,
            "collisions": sum(prompt.collision for prompt in prompts) // 3,
            "dropped": [
                {"relation": relation, "template": template, "reason": reason, "lists": count}
                for (relation, template, reason), count in sorted(dropped.counts.items())
            ],
        },
    )
