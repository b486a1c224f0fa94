"""Make the organisms' tokenizer from the plain text and the conversations."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd

from levelt.config import Settings
from levelt.organisms.tokenizer import save_tokenizer, train_tokenizer

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--settings (organisms.vocabulary; others are not read), --text, --instructions, --out (a folder)."""
    parser.add_argument("--settings", required=True, help="JSON with the key organisms.vocabulary")
    parser.add_argument("--text", required=True, type=Path, help="documents of `levelt corpus`")
    parser.add_argument("--instructions", required=True, type=Path, help="conversations of `levelt instructions`")
    parser.add_argument("--out", required=True, type=Path, help="folder for the tokenizer's files")


def run(args: argparse.Namespace) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template."""
    settings = Settings.from_json(args.settings)
    texts = pd.read_parquet(args.text, columns=["text"])["text"].tolist()
    messages = pd.read_parquet(args.instructions, columns=["messages"])["messages"]
    texts += [message["content"] for conversation in messages for message in conversation]
    tokenizer = train_tokenizer(texts, settings["organisms.vocabulary"])
    names = save_tokenizer(tokenizer, args.out)
    log.info("%d entries; wrote %s", len(tokenizer), ", ".join(names))
