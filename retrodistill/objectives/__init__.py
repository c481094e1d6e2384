"""Objectives: pure functions of (batch, n) float32 lists with a mask, or of (batch, d) embeddings."""

from retrodistill.objectives.distributions import contrastive, kl_divergence
from retrodistill.objectives.embeddings import leaf
from retrodistill.objectives.margins import margin_mse

__all__ = ["contrastive", "kl_divergence", "leaf", "margin_mse"]
