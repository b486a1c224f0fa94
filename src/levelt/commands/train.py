"""Train one stage of one organism and write it as a Hugging Face checkpoint."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from levelt.config import Settings
from levelt.files import InputError, sha256, write_csv
from levelt.organisms.architectures import build
from levelt.organisms.stages import Identity, Material, plan_base, plan_dpo, plan_sft, write_organism
from levelt.organisms.training import (
    Plan,
    TargetMissed,
    final_measures,
    reinitialise_unseen,
    settle,
    throughput,
    train,
    worst,
)
from levelt.randomness import derive_seed
from levelt.world.tasks import Bank

log = logging.getLogger(__name__)


STAGES = ("untrained", "base", "sft", "dpo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, stage, shape, the files trained on, and the folder to write."""
    parser.add_argument(
        "--settings",
        required=True,
        help="JSON with seed, world, organisms.threads, organisms.shapes.SHAPE (with the one seed of this training) "
        "and organisms.STAGE; for sft and dpo also organisms.templates and templates.NAME of each",
    )
    parser.add_argument(
        "--stage",
        required=True,
        choices=STAGES,
        help="untrained: initial weights; base: plain text; sft: instructions; dpo: preferences",
    )
    parser.add_argument("--shape", required=True, help="name of the shape, for example llama-m")
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder written by `levelt tokenizer`")
    parser.add_argument("--text", type=Path, help="plain text as tokens, of `levelt encode` (base, sft)")
    parser.add_argument("--instructions", type=Path, help="conversations as tokens, of `levelt encode` (sft)")
    parser.add_argument("--preferences", type=Path, help="preference pairs of `levelt instructions` (dpo)")
    parser.add_argument("--samples", type=Path, nargs="+", help="held-out samples, <task>.parquet each (sft, dpo)")
    parser.add_argument("--init", type=Path, help="folder of the organism of the stage before (sft, dpo)")
    parser.add_argument("--out", required=True, type=Path, help="folder of the checkpoint")
    parser.add_argument(
        "--throughput", type=Path, help="table (.csv) of the tokens per second on the way, no two runs alike"
    )


_NEEDS = {
    "untrained": (),
    "base": ("text",),
    "sft": ("init", "text", "instructions", "samples"),
    "dpo": ("init", "preferences", "samples"),
}


def _check(args: argparse.Namespace) -> None:
    """Refuse missing arguments and files before anything is computed."""
    absent = [f"--{name}" for name in _NEEDS[args.stage] if getattr(args, name) is None]
    if absent:
        raise InputError(f"--stage {args.stage} needs {' and '.join(absent)}")
    files = [args.tokenizer / "tokenizer.json"]
    for name in _NEEDS[args.stage]:
        value = getattr(args, name)
        files += value if isinstance(value, list) else [value / "model.safetensors" if name == "init" else value]
    for path in files:
        if not path.exists():
            raise InputError(f"{path}: no such file")


def _start(init: Path, tokenizer: Path) -> PreTrainedModel:
    """The organism to go on from."""
    if sha256(init / "tokenizer.json") != sha256(tokenizer / "tokenizer.json"):
        raise InputError(f"{init} was trained with another tokenizer than {tokenizer}: train its base stage again")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(init), dtype=torch.float32)
    return model


def _material(args: argparse.Namespace, settings: Settings, tokenizer: PreTrainedTokenizerFast, seed: int) -> Material:
    """What the stage is made from."""
    tuned = args.samples is not None
    return Material(
        seed=settings.seed,
        run=(f"seed{seed}",) if seed else (),
        tokenizer=tokenizer,
        bank=Bank(settings.world.heldout, tuple(settings.world.tasks)),
        text=pd.read_parquet(args.text) if args.text else None,
        samples={path.stem: pd.read_parquet(path) for path in args.samples} if tuned else {},
        templates=[settings[f"templates.{name}"] for name in settings["organisms.templates"]] if tuned else (),
        conversations=pd.read_parquet(args.instructions) if args.instructions else None,
        pairs=pd.read_parquet(args.preferences) if args.preferences else None,
    )


def run(args: argparse.Namespace) -> None:
    """Train, or continue an interrupted training, and write the checkpoint folder."""
    settings = Settings.from_json(args.settings)
    stage, shape = args.stage, settings[f"organisms.shapes.{args.shape}"]
    if len(shape.seeds) != 1:
        raise InputError(f"--settings: organisms.shapes.{args.shape}.seeds is {shape.seeds}, expected one seed")
    (number,) = shape.seeds
    disable_progress_bar()  # progress is logged here, line by line
    _check(args)
    settle(settings["organisms.threads"])
    tokenizer = AutoTokenizer.from_pretrained(str(args.tokenizer))
    material = _material(args, settings, tokenizer, number)
    # an untrained organism has the weights with which the base stage begins
    seed = derive_seed(settings.seed, "organisms", args.shape, *material.run, "base" if stage == "untrained" else stage)
    plan: Plan | None = None
    if stage in ("untrained", "base"):
        vocabulary = -(-len(tokenizer) // 8) * 8
        model = build(shape, vocabulary, tokenizer.pad_token_id, tokenizer.eos_token_id, seed)
    else:
        model = _start(args.init, args.tokenizer)
    if stage == "base":
        plan = plan_base(material, settings["organisms.base"], shape)
    elif stage == "sft":
        plan = plan_sft(material, settings["organisms.sft"], shape)
        assert material.text is not None
        seen = np.concatenate(material.text["ids"].tolist())
        log.info("%d embeddings unseen in plain text drawn anew", reinitialise_unseen(model, seen, seed))
    elif stage == "dpo":
        plan = plan_dpo(material, settings["organisms.dpo"], shape, model)
    work = args.out.with_name(f"{args.out.name}.partial")
    identity = Identity(args.out.name, args.shape.removesuffix(f"-{shape.size}"), shape.size, stage, number)
    record = {
        "stopped": "all steps done" if plan else "not trained",
        "steps": plan.steps if plan else 0,
        "tokens": sum(plan.tokens) if plan else 0,
        "seed": settings.seed,
        "derived_seed": seed,
        "threads": settings["organisms.threads"],
        "init": str(args.init) if args.init else None,
    }
    curve = train(model, plan, work) if plan else []
    out, failure = args.out, ""
    if plan:
        target = settings[f"organisms.{stage}"].target
        name, value = worst(final_measures(curve, "marker_" if stage == "base" else "exact_"))
        record |= {"target": target, "worst": {name: round(value, 4)}}
        log.info("%s: lowest held-out accuracy %s %.3f", args.out.name, name, value)
        if value < target:
            out = args.out.with_name(f"{args.out.name}.failed")
            failure = (
                f"{args.out.name}: {name} is {value:.3f} on held-out texts, below the target {target} of "
                f"organisms.{stage}; the checkpoint is kept in {out}"
            )
    write_organism(out, work, identity, model, tokenizer, curve, record)
    if args.throughput and curve:
        write_csv(args.throughput, pd.DataFrame(throughput(curve)))
    shutil.rmtree(work)
    if failure:
        raise TargetMissed(failure)
