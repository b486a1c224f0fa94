"""Random generators derived from (study seed, named labels) by hashing, so that no draw depends on another.

A stage never shares a generator with another stage: adding a draw somewhere cannot change results elsewhere.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for the draw named by ``labels`` under the study seed.

    Labels are length-prefixed before hashing, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256(str(seed).encode())
    for label in labels:
        raw = str(label).encode()
        digest.update(f"/{len(raw)}:".encode() + raw)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int) -> np.random.Generator:
    """A numpy generator for the draw named by ``labels`` under the study seed."""
    return np.random.default_rng(derive_seed(seed, *labels))


def share(name: str, *labels: str | int) -> float:
    """A fixed number in [0, 1) that depends on ``name`` and ``labels`` only: for held-out splits that never move."""
    return derive_seed(0, *labels, name) / 2.0**63
