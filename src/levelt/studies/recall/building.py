"""From the config to the prompts of one model: facts asked, lists generated or given, tokens checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from levelt.config import FactsFile, ListingFiles, Recall, RecallTemplate
from levelt.engine.cache import empty_cache
from levelt.engine.generate import Batch, generate, plan_batches, prefill
from levelt.models.loading import Decoder
from levelt.studies.recall.listings import (
    Dropped,
    Listing,
    Request,
    generated_list,
    given_list,
    read_facts,
    read_listings,
    requests,
    world_facts,
)
from levelt.studies.recall.prompts import RecallPrompt, Tokens, tokenised, with_steps


def build_prompts(
    decoder: Decoder, settings: Recall, subjects: int, seed: int, model: str, batch_tokens: int = 4096
) -> tuple[list[RecallPrompt], Dropped]:
    """The prompts of the study for one model, and what was left out and why.

    Args:
        decoder: the loaded model; it is run where lists are generated.
        settings: the config section.
        subjects: subjects of each relation of the world.
        seed: of the study.
        model: its name in messages.
        batch_tokens: tokens of a batch when lists are generated.

    Raises:
        InputError: a source cannot be read, or a request cannot be rendered.
    """
    dropped = Dropped()
    made: list[tuple[Listing, Sequence[int] | None]] = []
    if isinstance(settings.source, ListingFiles):
        listings, dropped = read_listings(settings.source.paths, settings.source.relation)
        made = [(listing, None) for listing in listings]
    else:
        file = settings.source.path if isinstance(settings.source, FactsFile) else None
        known = read_facts(file) if file else world_facts(subjects)
        for name, template in settings.templates.items():
            asked = requests(known, name, template, decoder.tokenizer, model)
            if settings.lists == "given":
                made += [(given_list(request, template), None) for request in asked]
            else:
                made += _generated(decoder, asked, template, settings.max_new_tokens, batch_tokens, dropped)
    kept: list[Tokens] = []
    for listing, expected in made:
        tokens = tokenised(listing, decoder.tokenizer, model, expected)
        if isinstance(tokens, str):
            dropped.add(listing.relation, listing.template, tokens)
        elif tokens.collision and settings.collisions == "drop":
            dropped.add(listing.relation, listing.template, "collision")
        else:
            kept.append(tokens)
    kept.sort(key=lambda tokens: (tokens.listing.relation, tokens.listing.template))
    return with_steps(kept, seed, dropped), dropped


def _generated(
    decoder: Decoder,
    asked: Sequence[Request],
    template: RecallTemplate,
    max_new_tokens: int,
    batch_tokens: int,
    dropped: Dropped,
) -> list[tuple[Listing, Sequence[int] | None]]:
    """The model's own lists that are distinct and correct, each with the tokens it was read and written as."""
    tokenizer: Any = decoder.tokenizer
    prompts = [tokenizer(one.text, add_special_tokens=one.special, verbose=False)["input_ids"] for one in asked]
    written: list[list[int]] = [[] for _ in asked]
    device = decoder.model.device
    for rows in plan_batches([len(ids) for ids in prompts], batch_tokens, max_new_tokens):
        batch = Batch.of([prompts[row] for row in rows], device)
        model, parts = decoder.model, decoder.parts
        read = prefill(model, parts, batch, None, read_attention=False, cache=empty_cache(model))
        done = generate(model, parts, batch, read, decoder.stop_ids, max_new_tokens, read_attention=False)
        for row, tokens, answer in zip(rows, done.tokens.cpu(), done.answer.cpu(), strict=True):
            written[row] = torch.masked_select(tokens, answer).tolist()
    made: list[tuple[Listing, Sequence[int] | None]] = []
    for request, ids, more in zip(asked, prompts, written, strict=True):
        before, after = (
            tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for tokens in (ids, [*ids, *more])
        )
        # decoded together: some tokenizers drop the blank in front of the first token they decode
        listing: Listing | str = "format"
        if after.startswith(before):
            listing = generated_list(request, after[len(before) :], template)
        if isinstance(listing, str):
            dropped.add(request.known.relation, request.template, listing)
        else:
            made.append((listing, [*ids, *more]))
    return made
