"""Objectives by name, for recipes and the command line."""

from __future__ import annotations

LIST_OBJECTIVES = {
    "kl": "KL divergence from the teacher's softmax over a list to the student's",
    "reverse-kl": "KL divergence the other way: no mass where the teacher has none",
    "balanced-kl": "both, weighed in each list by the gap of the entropies (BD-KD, arXiv 2212.12965)",
    "listnet": "cross-entropy of the top-one probabilities (Cao et al. 2007)",
    "mse": "squared difference of the scores themselves, up to one constant for the batch",
    "bce": "cross-entropy of each candidate alone with a soft label from 0 to 1 (Trans-Encoder, arXiv 2109.13059)",
    "margin-mse": "squared difference of margins, the teacher's best against each (arXiv 2010.02666)",
    "margin-mse-all": "squared difference of margins over all pairs of a list",
    "in-batch-margin-mse": "margins of a text's own document against the batch's others (TAS-B, arXiv 2104.06967)",
    "ranknet": "logistic loss of every pair that the teacher orders (Burges et al. 2005)",
    "lambdaloss": "the same pairs, each weighed by what it may change in nDCG (Wang et al. 2018)",
    "listmle": "likelihood of the teacher's whole order (Xia et al. 2008)",
    "pld": "likelihood of the teacher's order, each choice weighed by its confidence (arXiv 2506.12542)",
    "sinkhorn": "entropic transport between the batch's distributions (SinKD, arXiv 2402.17110)",
    "taid": "KL to a target that moves from student to teacher during training (arXiv 2501.16937)",
    "lwf": "KL to the student of the stage's start: an anchor beside another objective (PROD)",
    "contrastive": "InfoNCE with the pseudo-query's own document as positive; no teacher (a control)",
    "in-batch": "InfoNCE with the other texts' documents as negatives; no teacher (a control)",
}
EMBEDDING_OBJECTIVES = {
    "leaf": "squared distance to the teacher's embedding of the same text (arXiv 2509.12539)",
    "cosine": "cosine distance to the teacher's embedding of the same text",
    "relations": "cosines between the batch's texts, as the teacher has them (arXiv 1907.09682)",
    "nd": "length and direction of the teacher's embedding, for dot-product students (arXiv 2305.17007)",
    "mi-alpha": "a lower bound on the mutual information with the teacher's embedding (arXiv 2109.11105)",
}
OBJECTIVES = LIST_OBJECTIVES | EMBEDDING_OBJECTIVES

# Those that read no teacher score, so that flat lists do not matter to them.
TEACHERLESS = frozenset({"lwf", "contrastive", "in-batch"})
# Those that need the pseudo-query's own document, which is shown to no other objective.
NEED_POSITIVES = frozenset({"contrastive", "in-batch", "in-batch-margin-mse"})
# Those that need more than scores: a schedule, the student of the stage's start, the batch's other documents.
NEED_MORE = frozenset({"taid", "lwf", "in-batch", "in-batch-margin-mse"})

# Of other kinds of students, by the losses that are built for them.
TOKEN_OBJECTIVES = {
    "token-relations": "cosines between a text's tokens, as the teacher has them (TRG, arXiv 2306.12442)",
}
CLASS_OBJECTIVES = {
    "lelp": "pseudo-classes from linear projections of the teacher's embeddings (arXiv 2409.20449)",
}
REGULARIZERS = {
    "flops": "squared mean weight of each term over the batch (arXiv 2004.05665)",
    "l1": "sum of a text's term weights",
    "top-k": "sum of the term weights outside a text's k highest",
    "anti-zero": "inverse square of the sum of a text's term weights: keeps texts from losing all terms",
}
