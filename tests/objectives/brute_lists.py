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


def log_softmax(values, temperature=1.0):
    highest = max(values)
    total = sum(math.exp((value - highest) / temperature) for value in values)
    return [(value - highest) / temperature - math.log(total) for value in values]


def softmax(values):
    return [math.exp(value) for value in log_softmax(values)]


def divergence(of, to):
    return sum(math.exp(a) * (a - b) for a, b in zip(of, to, strict=True))


def entropy(logs):
    return -sum(math.exp(one) * one for one in logs)


def mean(found):
    return sum(found) / max(len(found), 1)


def per_list(value):
    """The mean of `value(student, teacher)` over the lists of at least two candidates."""

    def brute(scores, targets, mask):
        return mean([value(s, t) for s, t in rows(scores, targets, mask) if len(s) >= 2])

    return brute


def over_items(values):
    """The mean over all `values(student, teacher)` of lists of at least two candidates."""

    def brute(scores, targets, mask):
        return mean([one for s, t in rows(scores, targets, mask) if len(s) >= 2 for one in values(s, t)])

    return brute


def brute_kl(scores, targets, mask, student_temperature=1.0, teacher_temperature=1.0):
    value = per_list(lambda s, t: divergence(log_softmax(t, teacher_temperature), log_softmax(s, student_temperature)))
    return value(scores, targets, mask)


def balanced(s, t):
    p, q = log_softmax(t), log_softmax(s)
    weight = 1 / (1 + math.exp(entropy(q) - entropy(p)))
    return weight * divergence(p, q) + (1 - weight) * divergence(q, p)


def crossed(s, t):
    return -sum(math.exp(a) * b for a, b in zip(log_softmax(t), log_softmax(s), strict=True))


def margins_of_best(s, t):
    best = t.index(max(t))
    return [((s[best] - s[j]) - (t[best] - t[j])) ** 2 for j in range(len(s)) if j != best]


def margins_of_all(s, t):
    return [((s[i] - s[j]) - (t[i] - t[j])) ** 2 for i in range(len(s)) for j in range(i + 1, len(s))]


def logistic(value):
    """log(1 + exp(-value))."""
    return max(-value, 0.0) + math.log1p(math.exp(-abs(value)))


def ordered_pairs(t):
    return [(i, j) for i in range(len(t)) for j in range(len(t)) if t[i] > t[j]]


def ranknet_pairs(s, t):
    return [logistic(s[i] - s[j]) for i, j in ordered_pairs(t)]


def rank_errors(s, t):
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    places = range(len(s))
    smooth = [1 + sum(sigmoid(s[j] - s[i]) for j in places if j != i) for i in places]
    ranks = [1 + sum(t[j] > t[i] for j in places) + sum(t[j] == t[i] for j in places if j != i) / 2 for i in places]
    return [(a - b) ** 2 / math.log2(1 + b) for a, b in zip(smooth, ranks, strict=True)]


def lambda_sum(s, t, weighting="ndcg-loss2++", mu=10.0, gains=None):
    gains = [math.exp(one - max(t)) for one in t] if gains is None else gains
    ideal = sum(gain / math.log2(2 + place) for place, gain in enumerate(sorted(gains, reverse=True)))
    rank = [1 + sum(1 for other in s if other > one) for one in s]

    def discount(place):
        return 1 / math.log2(1 + place)

    total = 0.0
    for i, j in ordered_pairs(t):
        apart = abs(gains[i] - gains[j]) / ideal
        swapped = abs(discount(rank[i]) - discount(rank[j]))
        distance = abs(rank[i] - rank[j])
        stepped = abs(discount(distance) - discount(distance + 1))
        weight = {"lambdarank": swapped, "ndcg-loss2": stepped, "ndcg-loss2++": swapped + mu * stepped}[weighting]
        total += apart * weight * logistic(s[i] - s[j]) / math.log(2)
    return total


def choices(s, order, weights):
    """Plackett-Luce, choice by choice: what is left is written out."""
    total = 0.0
    for step, place in enumerate(order):
        left = [s[other] for other in order[step:]]
        total += weights[step] * (max(left) + math.log(sum(math.exp(one - max(left)) for one in left)) - s[place])
    return total


def by_teacher(t):
    return sorted(range(len(t)), key=lambda place: -t[place])


def listmle_sum(s, t):
    return choices(s, by_teacher(t), [1.0] * len(s))


def pld_sum(s, t, positive=None):
    order = by_teacher(t)
    if positive is not None:
        order = [positive, *(place for place in order if place != positive)]
    return choices(s, order, [softmax(t)[place] for place in order])


def brute_sinkhorn(scores, targets, mask, entropy=0.1, iterations=20):
    usable = [(s, t) for s, t in rows(scores, targets, mask) if len(s) >= 2]
    if not usable:
        return 0.0
    width = max(len(s) for s, _ in usable)
    sides = []
    for side in (0, 1):
        sides.append([])
        for pair in usable:
            values = softmax(pair[side])
            sides[side].append([values[place] for place in by_teacher(pair[1])] + [0.0] * (width - len(values)))
    costs = [[sum(abs(a - b) for a, b in zip(q, p, strict=True)) for p in sides[1]] for q in sides[0]]
    plan = [[math.exp(-cost / entropy) for cost in row] for row in costs]
    for _ in range(iterations):
        plan = [[one / sum(row) for one in row] for row in plan]
        sums = [sum(row[column] for row in plan) for column in range(len(plan))]
        plan = [[one / total for one, total in zip(row, sums, strict=True)] for row in plan]
    total = sum(a * b for one, two in zip(plan, costs, strict=True) for a, b in zip(one, two, strict=True))
    return total / len(costs)


def taid_value(s, t, share=0.6):
    mixed = [(1 - share) * a + share * b for a, b in zip(s, t, strict=True)]
    return divergence(log_softmax(mixed), log_softmax(s))


def skewed(of, other, share=0.1):
    """KL of the first distribution to a mixture with so much of it, from probabilities."""
    of, other = softmax(of), softmax(other)
    return sum(a * math.log(a / (share * a + (1 - share) * b)) for a, b in zip(of, other, strict=True))


def soft_label(score, label):
    """-y log sigmoid(s) - (1 - y) log sigmoid(-s); labels beyond 0..1 are as linear in it."""
    return label * logistic(score) + (1 - label) * logistic(-score)


BRUTE = {
    "kl": brute_kl,
    "reverse-kl": per_list(lambda s, t: divergence(log_softmax(s), log_softmax(t))),
    "balanced-kl": per_list(balanced),
    "skew-kl": per_list(lambda s, t: skewed(t, s)),
    "skew-reverse-kl": per_list(skewed),
    "calibrated-kl": brute_kl,  # of texts without a positive
    "listnet": per_list(crossed),
    "mse": over_items(lambda s, t: [(a - b) ** 2 for a, b in zip(s, t, strict=True)]),
    "bce": over_items(lambda s, t: [soft_label(a, b) for a, b in zip(s, t, strict=True)]),
    "margin-mse": over_items(margins_of_best),
    "margin-mse-all": over_items(margins_of_all),
    "ranknet": over_items(ranknet_pairs),
    "adr-mse": over_items(rank_errors),
    "lambdaloss": per_list(lambda_sum),
    "listmle": per_list(listmle_sum),
    "pld": per_list(pld_sum),
    "sinkhorn": brute_sinkhorn,
    "taid": per_list(taid_value),
}
