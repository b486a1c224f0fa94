"""Train one stage of one organism and write it as a Hugging Face checkpoint."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from levelt.config import Settings
from levelt.files import InputError, sha256
from levelt.organisms.architectures import build
from levelt.organisms.stages import Identity, Material, encode_text, plan_base, plan_sft, write_organism
from levelt.organisms.training import TargetMissed, final_measures, reinitialise_unseen, settle, train, worst
from levelt.randomness import derive_seed
from levelt.world.tasks import Bank

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, stage, shape, the files trained on, and the folder to write."""
    parser.add_argument(
        "--settings",
        required=True,
        help="JSON with seed, world, organisms.threads, organisms.shapes.SHAPE and organisms.STAGE; for sft also "
        "organisms.templates and templates.NAME of each",
    )
    parser.add_argument("--stage", required=True, choices=["base", "sft"], help="base: plain text; sft: instructions")
    parser.add_argument("--shape", required=True, help="name of the shape, for example llama-m")
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder written by `levelt tokenizer`")
    parser.add_argument("--text", required=True, type=Path, help="text.parquet of `levelt world`")
    parser.add_argument("--instructions", type=Path, help="conversations of `levelt instructions` (sft)")
    parser.add_argument("--samples", type=Path, nargs="+", help="held-out samples, <task>.parquet each (sft)")
    parser.add_argument("--init", type=Path, help="folder of the base organism (sft)")
    parser.add_argument("--out", required=True, type=Path, help="folder of the checkpoint")


def _check(args: argparse.Namespace) -> None:
    """Refuse missing files before anything is computed."""
    files = [args.text, args.tokenizer / "tokenizer.json"]
    if args.stage == "sft":
        if args.init is None or args.instructions is None or args.samples is None:
            raise InputError("--stage sft needs --init, --instructions and --samples")
        files += [args.instructions, args.init / "model.safetensors", *args.samples]
    for path in files:
        if not path.exists():
            raise InputError(f"{path}: no such file")


def _start(init: Path, tokenizer: Path) -> PreTrainedModel:
    """The base organism to go on from."""
    if sha256(init / "tokenizer.json") != sha256(tokenizer / "tokenizer.json"):
        raise InputError(f"{init} was trained with another tokenizer than {tokenizer}: train its base stage again")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(init), dtype=torch.float32)
    return model


def run(args: argparse.Namespace) -> None:
    """Train, or continue an interrupted training, and write the checkpoint folder."""
    settings = Settings.from_json(args.settings)
    stage, shape = args.stage, settings[f"organisms.shapes.{args.shape}"]
    training = settings[f"organisms.{stage}"]
    tuning = stage == "sft"
    disable_progress_bar()  # progress is logged here, line by line
    _check(args)
    settle(settings["organisms.threads"])
    tokenizer = AutoTokenizer.from_pretrained(str(args.tokenizer))
    material = Material(
        seed=settings.seed,
        tokenizer=tokenizer,
        bank=Bank(settings.world.heldout, tuple(settings.world.tasks)),
        text=pd.read_parquet(args.text),
        samples={path.stem: pd.read_parquet(path) for path in args.samples} if tuning else {},
        templates=[settings[f"templates.{name}"] for name in settings["organisms.templates"]] if tuning else (),
        conversations=pd.read_parquet(args.instructions) if tuning else None,
    )
    seed = derive_seed(settings.seed, "organisms", args.shape, stage)
    if stage == "base":
        plan = plan_base(material, training)
        vocabulary = -(-len(tokenizer) // 8) * 8
        model = build(shape, vocabulary, tokenizer.pad_token_id, tokenizer.eos_token_id, seed)
    else:
        plan = plan_sft(material, training)
        model = _start(args.init, args.tokenizer)
        seen = np.concatenate([ids for ids, _ in encode_text(tokenizer, material.text)])
        count = reinitialise_unseen(model, seen, seed)
        log.info("%d embeddings unseen in plain text drawn anew", count)
    work = args.out.with_name(f"{args.out.name}.partial")
    curve = train(model, plan, work)
    name, value = worst(final_measures(curve, "marker_" if stage == "base" else "exact_"))
    missed = value < training.target
    out = args.out.with_name(f"{args.out.name}.failed") if missed else args.out
    identity = Identity(args.out.name, args.shape.removesuffix(f"-{shape.size}"), shape.size, stage)
    record = {
        "stopped": "all steps done",
        "steps": training.steps,
        "tokens": training.steps * training.rows * training.length,
        "seed": settings.seed,
        "derived_seed": seed,
        "threads": settings["organisms.threads"],
        "target": training.target,
        "worst": {name: round(value, 4)},
        "init": str(args.init) if args.init else None,
    }
    write_organism(out, work, identity, model, tokenizer, curve, record)
    shutil.rmtree(work)
    if missed:
        raise TargetMissed(
            f"{args.out.name}: {name} is {value:.3f} on held-out texts, below the target {training.target} of "
            f"organisms.{stage}; the checkpoint is kept in {out}"
        )
    log.info("wrote %s; lowest held-out accuracy %s %.3f", args.out, name, value)
