"""Write the synthetic world: held-out samples of each task and of the contrasts, and what its text holds."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from levelt.config import Settings
from levelt.files import write_json, write_parquet
from levelt.world.contrasts import contrast_samples, contrasts
from levelt.world.corpus import plain_text, samples
from levelt.world.facts import facts
from levelt.world.tasks import Bank

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--settings (seed, world), --out (a folder)."""
    parser.add_argument("--settings", required=True, help="JSON with the sections seed and world")
    parser.add_argument("--out", required=True, type=Path, help="folder for samples/ and the other files")


def run(args: argparse.Namespace) -> None:
    """Write samples/<task>.parquet, contrasts.parquet and summary.json."""
    settings = Settings.from_json(args.settings)
    world = settings.world
    bank = Bank(world.heldout, tuple(world.tasks))
    for task in bank.tasks:
        write_parquet(args.out / "samples" / f"{task}.parquet", samples(settings.seed, bank, task, world.samples))
    pairs = contrast_samples(settings.seed, world.heldout, world.samples)
    write_parquet(args.out / "contrasts.parquet", pairs)
    text = plain_text(settings.seed, bank, world.documents, world.subjects)
    summary = {
        "clauses": bank.counts(),
        "samples": dict.fromkeys(bank.tasks, world.samples // 2 * 2),
        "contrasts": {
            contrast.name: {
                "queries": len(contrast.queries),
                "heldout": len(contrast.texts(world.heldout, True)),
                "samples": int((pairs["task"] == contrast.name).sum()),
            }
            for contrast in contrasts()
        },
        "facts": {
            "subjects": len(facts(world.subjects)),
            "answers": sum(len(f.answers) for f in facts(world.subjects)),
        },
        "documents": {kind: int(n) for kind, n in text["kind"].value_counts().sort_index().items()},
        "characters": int(text["text"].str.len().sum()),
    }
    write_json(args.out / "summary.json", summary)
    for task, counts in bank.counts().items():
        log.info("%s: %d clauses, %d of them held out, %d minimal pairs", task, *counts.values())
    log.info("%d documents, %d characters", len(text), summary["characters"])
