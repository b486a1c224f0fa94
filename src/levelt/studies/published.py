"""Values published for the first study (Waldis et al. 2026, arXiv 2605.11206), to stand beside ours.

Second-hand, from the collection in the method spec (section 9: row numbers below); the paper's body was not at hand.
"""

from __future__ import annotations

VALUES = {
    "spread.sample": 0.7,  # row 1: +- percentage points of probing accuracy over three prompt variations
    "spread.output": 2.2,  # row 1
    "spread.output-sample": 1.5,  # row 1, the difference of the two
    "tau.cells.output.behaviour": 0.62,  # row 2
    "tau.cells.sample.behaviour": -0.15,  # row 3
    "tau.cells.sample.output": 0.02,  # row 4
    "agreement.instruction_first.sample_first": 77.0,  # row 5, per cent
    "agreement.instruction_first.demonstrations": 60.0,  # row 6
    "agreement.sample_first.demonstrations": 58.0,  # row 6
    "agreement.all": 48.0,  # row 7
    "change.block_instruction_to_all.behaviour": -58.0,  # row 8, percentage points of exact match
    "change.block_instruction_to_all.sample": -0.8,  # row 8, probing accuracy
    "change.block_instruction_to_all.output": -3.0,  # row 8
    "change.block_instruction_to_sample.behaviour": -4.0,  # row 9
    "change.block_instruction_to_sample.sample": -0.8,  # row 9
    "change.unrelated_instruction.output": -10.0,  # row 18
    "change.unrelated_instruction.output-sample": -8.0,  # row 18, the difference of -10.0 and -2.0
}
