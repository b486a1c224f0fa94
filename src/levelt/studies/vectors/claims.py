"""The claims of the second paper (C1 to C5), each as a declared test on the tables of the instruction vectors."""

from __future__ import annotations

from levelt.studies.verdicts import Claim

CLAIMS: tuple[Claim, ...] = ()
