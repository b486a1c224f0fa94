"""Values that the tables share with whoever reads them: reading a table needs none of what made it (torch, models)."""

from __future__ import annotations

NONE = "none"
"""Of the column earlier_stage: the row is a mean of its stage, not a change."""

MEAN_OF_LAYERS = -1
""""Layer" of the row that averages layers 1..L."""
