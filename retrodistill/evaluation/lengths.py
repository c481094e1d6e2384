"""How many tokens a length-adaptive encoder can keep within a time limit, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.length_adaptive import length_adaptive_settings
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import KEEP
from retrodistill.encoders.names import parse_model_name, split_variant
from retrodistill.encoders.vectors import cosines
from retrodistill.evaluation.cost import fixed_threads

SAMPLE = 64  # texts that are enough
_ALONE = 16  # texts that are encoded one by one
_ROUNDS = 3  # the fastest counts: other work on the machine only makes a round slower


class LengthCost(NamedTuple):
    """What a share of the tokens costs and keeps."""

    model: str  # by which it loads: dense:FOLDER@keep-0.5
    keep: float
    per_second: float  # texts, in batches
    ms: float  # of a text alone, the median
    cosine: float  # mean over the texts, to the vectors of all tokens


def measure_lengths(name: str, texts: Sequence[str], role: Role = "document", *, threads: int = 1) -> list[LengthCost]:
    """Time a length-adaptive model with all tokens, and with every tenth down to the smallest share that it may keep.

    Args:
        name: ``dense:NAME``.
        texts: As long as those that it will encode, and enough of them: some dozens.
        role: Whether they are documents or queries, for the prompt.
        threads: Of torch.

    Raises:
        UserError: The model is not length-adaptive, or no texts are given.
    """
    from retrodistill.encoders.token_dropping import keep_share

    if not texts:
        raise UserError(f"no {role} to time; choose a collection or split that has some.")
    base = split_variant(name)[0]
    if (parsed := parse_model_name(base)).kind != "dense":
        raise UserError(f"model {base} is not a dense encoder; give the length-adaptive student as dense:FOLDER.")
    whole = Encoder(load_bi_encoder(parsed.name), base)
    settings = length_adaptive_settings(whole.model)
    if settings is None:
        raise UserError(f"model {base} drops no tokens; train it as a student with length_adaptive.")
    tenths = [tenth / 10 for tenth in range(10, 0, -1) if tenth / 10 > settings.keep[-1]]
    costs, vectors = [], whole.encode(texts, role)
    with fixed_threads(threads):
        for keep in [*tenths, settings.keep[-1]]:
            encoder = Encoder(keep_share(whole.model, keep), f"{base}@{KEEP}{keep:g}")
            costs.append(_cost(encoder, keep, texts, role, vectors))
    return costs


def choose_length(
    costs: Sequence[LengthCost], *, ms: float | None = None, per_second: float | None = None
) -> LengthCost:
    """The most tokens within a limit: at most `ms` for a text alone, at least `per_second` texts.

    Raises:
        UserError: No share keeps within the limits.
    """
    within = [
        cost
        for cost in costs
        if (ms is None or cost.ms <= ms) and (per_second is None or cost.per_second >= per_second)
    ]
    if not within:
        fastest = max(costs, key=lambda cost: cost.per_second)
        raise UserError(
            f"no share of the tokens is within the limit: {fastest.model} takes {fastest.ms:.3g} ms for a text alone "
            f"and encodes {fastest.per_second:.3g} texts per second; take a model with fewer layers, or cut texts to "
            "fewer tokens (max_length)."
        )
    return max(within, key=lambda cost: cost.keep)


def _cost(encoder: Encoder, keep: float, texts: Sequence[str], role: Role, whole: np.ndarray) -> LengthCost:
    cosine = float(cosines(encoder.encode(texts, role), whole).mean())  # the warm-up, too
    rounds, alone = [], []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        encoder.encode(texts, role)
        rounds.append(time.perf_counter() - start)
        alone.append([_seconds(encoder, text, role) for text in texts[:_ALONE]])
    ms = 1000 * float(np.median(np.min(alone, axis=0)))
    return LengthCost(encoder.name, keep, len(texts) / min(rounds), ms, cosine)


def _seconds(encoder: Encoder, text: str, role: Role) -> float:
    start = time.perf_counter()
    encoder.encode([text], role)
    return time.perf_counter() - start
