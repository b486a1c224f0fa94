"""Instruction vectors: where an instruction is held, whether layers act together, which later paths it selects."""
