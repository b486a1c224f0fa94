"""The claims of the third paper (M1 to M4), each as a declared test on the tables of the recall study."""

from __future__ import annotations

from levelt.studies.verdicts import Claim

CLAIMS: tuple[Claim, ...] = ()
