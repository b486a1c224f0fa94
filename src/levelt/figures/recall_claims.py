"""Figure: the claims of the third paper on this study's models, with verdicts."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.claims import draw_paper


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Every claim with evidence: estimate, interval, and where it must lie for the claim to hold."""
    return draw_paper(tables["claims"], "recall")
