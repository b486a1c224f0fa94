"""Examine one finished organism on held-out texts and write its card."""

from __future__ import annotations

import argparse
import logging
from itertools import chain
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from levelt.config import Settings
from levelt.files import read_json, write_csv, write_json
from levelt.organisms.cards import card
from levelt.organisms.examination import (
    Examiner,
    contrast_items,
    demonstrated,
    demonstrated_contrasts,
    judgments,
    minimal_pairs,
    recalled,
    summarise,
    word_items,
)
from levelt.world.contrasts import contrasts
from levelt.world.facts import facts

log = logging.getLogger(__name__)

_DEMONSTRATED = 200  # texts per task and mapping: a prompt holds five texts
_REWORDED = 200  # texts per task for the other trained templates, and for questions about a word


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The organism, the held-out world, and the two files to write."""
    parser.add_argument(
        "--settings",
        required=True,
        help="JSON with seed, world, templates, organisms.templates, organisms.threads, prompts, statistics",
    )
    parser.add_argument("--model-manifest", required=True, type=Path, help="manifest.json of the organism")
    parser.add_argument("--samples", required=True, type=Path, nargs="+", help="held-out samples, <task>.parquet each")
    parser.add_argument("--contrasts", required=True, type=Path, help="contrasts.parquet of `levelt world`")
    parser.add_argument("--summary", required=True, type=Path, help="summary.json of `levelt world`")
    parser.add_argument("--out", required=True, type=Path, help="table of accuracies (.csv)")
    parser.add_argument("--card", required=True, type=Path, help="the card (.json)")


def run(args: argparse.Namespace) -> None:
    """Ask everything, write the table and the card."""
    settings = Settings.from_json(args.settings)
    torch.set_num_threads(settings["organisms.threads"])
    disable_progress_bar()
    manifest = read_json(args.model_manifest)
    folder = str(args.model_manifest.parent)
    examiner = Examiner(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    )
    samples = {path.stem: pd.read_parquet(path) for path in args.samples}
    queries = pd.read_parquet(args.contrasts)
    templates, prompts, seed = settings.templates, settings.prompts, settings.seed
    main, known = prompts.template, contrasts()
    trained = settings["organisms.templates"]
    others = {name: _REWORDED if name in trained else settings.world.samples for name in templates if name != main}
    items = list(
        chain(
            judgments(samples, templates, main, others),
            word_items(samples["acceptability"].head(_REWORDED), templates[main], main),
            contrast_items(queries, known, templates[main], main),
            demonstrated(seed, samples, _DEMONSTRATED, prompts.demonstrations, templates[main], main),
            demonstrated_contrasts(seed, queries, known, _DEMONSTRATED, prompts.demonstrations, templates[main], main),
        )
    )
    found = [([(item.cell, item.group) for item in items], examiner.answers(items))]
    log.info("%d prompts answered", len(items))
    found.append(minimal_pairs(examiner, samples))
    found.append(recalled(examiner, facts(settings.world.subjects), templates))
    table = pd.concat([summarise(*part, settings.statistics, seed) for part in found], ignore_index=True)
    write_csv(args.out, table)
    write_json(args.card, card(manifest, table, trained, main, read_json(args.summary)))
    log.info("wrote %s, %d rows", args.out, len(table))
