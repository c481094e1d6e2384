"""Term weights of a sparse student's documents, from stored hidden states: to train its head, and to search by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.students.heads import activations_of, head_of
from retrodistill.students.lexical_terms import lexical_terms_of, saturated_terms
from retrodistill.students.states import States, segment_max


class TermHead:
    """``log(1 + relu(max_i <d_t, h_i> + b_t))`` over the document's hidden states h_i, and lexical terms if there are.

    Args:
        student: A sparse student with a head behind its transformer.
        states: Of the documents.
        texts: The documents; only read where the student has lexical terms.

    Attributes:
        parameters: (vocabulary, d) vectors, (vocabulary,) biases, and lexical terms' (vocabulary,) weights if any.

    Raises:
        UserError: No such head, or a pooling that does not take the maximum.
    """

    def __init__(self, student: SparseTextEncoder, states: States, texts: Sequence[str]) -> None:
        head, own = head_of(student).linear, lexical_terms_of(student)
        self.parameters: list[nn.Parameter] = [head.weight, head.bias, *([own.weight] if own is not None else [])]
        self._logarithms = activations_of(student)
        self._states = states
        self._own: csr_array | None = saturated_terms(student, own, texts) if own is not None else None

    def weights(self, chosen: Sequence[Tensor], terms: Tensor, documents: np.ndarray) -> Tensor:
        """(documents, terms) weights of some terms in some documents.

        Args:
            chosen: The rows of `parameters` (or of their copies) that belong to the terms.
            terms: (terms,) int64 places in the vocabulary.
            documents: (m,) corpus positions.
        """
        vectors, biases, *own = chosen
        states, lengths = self._states.gather(documents, vectors.device)
        weights = torch.relu(segment_max(states @ vectors.T, lengths) + biases)
        for _ in range(self._logarithms):
            weights = torch.log1p(weights)
        if self._own is None:
            return weights
        counts = torch.from_numpy(self._own[documents][:, terms.cpu().numpy()].toarray()).to(weights.device)
        return weights + torch.relu(own[0]) * counts
