"""Encode what organisms are trained on, once for all trainings: tokens with their loss weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerFast

from levelt.files import InputError, write_parquet
from levelt.organisms.encoding import encode_conversations, encode_text, to_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--tokenizer (a folder), --text or --instructions (a file), --out (a file)."""
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder written by `levelt tokenizer`")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path, help="documents of `levelt corpus`")
    source.add_argument("--instructions", type=Path, help="conversations of `levelt instructions`")
    parser.add_argument("--out", required=True, type=Path, help="Parquet file of early, ids and weights of each text")


def run(args: argparse.Namespace) -> None:
    """Read, encode, write."""
    path = args.text or args.instructions
    for needed in (path, args.tokenizer / "tokenizer.json"):
        if not needed.exists():
            raise InputError(f"{needed}: no such file")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(args.tokenizer))
    table = pd.read_parquet(path)
    encoded = encode_text(tokenizer, table) if args.text else encode_conversations(tokenizer, table)
    write_parquet(args.out, to_table(table["early"], encoded), quick=True)
