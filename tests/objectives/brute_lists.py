"""Random masked lists and the objectives as plain Python loops."""

import math

import torch

KINDS = ["full", "masked", "single", "nothing"]


def lists(seed, scale=1.0, kind="masked", batch=5, n=6):
    """Scores, targets, mask in float64; masked places of both hold NaN and infinities."""
    generator = torch.Generator().manual_seed(seed)
    scores, targets = (scale * torch.randn(batch, n, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(batch, n, generator=generator) < 0.6
    if kind == "full":
        mask[:] = True
    if kind == "masked":
        mask[0] = False
        mask[1] = False
        mask[1, 2] = True
    if kind == "single":
        mask[:] = False
        mask[:, 1] = True
    if kind == "nothing":
        mask[:] = False
    bad = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64).repeat(batch * n)[: batch * n]
    bad = bad.reshape(batch, n)
    return torch.where(mask, scores, bad), torch.where(mask, targets, bad), mask


def rows(scores, targets, mask):
    """The unmasked (student, teacher) scores of each list, as Python floats."""
    for s, t, valid in zip(scores.tolist(), targets.tolist(), mask.tolist(), strict=True):
        places = [place for place, one in enumerate(valid) if one]
        yield [s[place] for place in places], [t[place] for place in places]


def log_softmax(values, temperature):
    highest = max(values)
    total = sum(math.exp((value - highest) / temperature) for value in values)
    return [(value - highest) / temperature - math.log(total) for value in values]


def brute_kl(scores, targets, mask, student_temperature=1.0, teacher_temperature=1.0):
    found = []
    for s, t in rows(scores, targets, mask):
        if len(s) >= 2:
            p, q = log_softmax(t, teacher_temperature), log_softmax(s, student_temperature)
            found.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
    return sum(found) / max(len(found), 1)


def brute_margin(scores, targets, mask, pairs):
    found = []
    for s, t in rows(scores, targets, mask):
        if pairs == "all":
            chosen = [(i, j) for i in range(len(s)) for j in range(i + 1, len(s))]
        else:
            best = t.index(max(t)) if t else None
            chosen = [(best, j) for j in range(len(s)) if j != best]
        found += [((s[i] - s[j]) - (t[i] - t[j])) ** 2 for i, j in chosen]
    return sum(found) / max(len(found), 1)
