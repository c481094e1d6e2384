"""Objectives by name, for recipes and the command line."""

from __future__ import annotations

LIST_OBJECTIVES = {
    "kl": "KL divergence from the teacher's softmax over a list to the student's",
    "margin-mse": "squared difference of margins, the teacher's best against each (arXiv 2010.02666)",
    "margin-mse-all": "squared difference of margins over all pairs of a list",
    "contrastive": "InfoNCE with the pseudo-query's own document as positive; no teacher (a control)",
}
EMBEDDING_OBJECTIVES = {
    "leaf": "squared distance to the teacher's embedding of the same text (arXiv 2509.12539)",
}
OBJECTIVES = LIST_OBJECTIVES | EMBEDDING_OBJECTIVES
