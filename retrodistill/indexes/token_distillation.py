"""Distill-VQ for token vectors: codebooks that reproduce the MaxSim of the vectors themselves (arXiv 2204.00185).

The start is OPQ on a sample of documents. Codes stay as OPQ chose them; codebooks and rotation are learned so that, for
training queries, the scores of quantized documents make the lists that exact MaxSim makes:

    loss = KL( softmax(maxsim(Q, D) / T) || softmax(maxsim(Q, quantized D) / T) )

over each query's best documents and others. Tokens are encoded by the start and decoded by what was learned, so that
any document, seen or not, has the codes that the codebooks were learned for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.progress import bar
from retrodistill.encoders.maxsim import maxsim
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.indexes.codec import Codec, unit_rows

if TYPE_CHECKING:
    from torch import Tensor

_STEPS, _EVALUATIONS = 300, 6
_QUERIES = 8  # of a step
_DEPTH, _RANDOM = 8, 16  # documents of a step: the best of each query, and others
_RATE = 1e-3
_SHARPNESS = 2.0  # the temperature is the spread of a query's scores over this
_HELD_OUT = 0.15
_FEWEST = 20  # queries, of which three are held out


@dataclass(frozen=True, eq=False)
class Lessons:
    """Queries to learn from.

    Attributes:
        queries: Their token vectors.
        sources: (n,) int64 row in the sample of the document that a query was taken from, -1 for a real one: its own
            document is no candidate for it, since the teacher would say nothing but that.
    """

    queries: Tokens
    sources: np.ndarray


class DistilledCodec(Codec):
    """Codes of a product quantizer, decoded by codebooks and a transform that were learned.

    Args:
        index: The OPQ that encodes.
        transform: (d, d) float32 in the rotation's place.
        codebooks: (M, 256, d / M) float32.
        unit: Give decoded vectors length 1.
    """

    kind = "distilled-pq"

    def __init__(self, index: Any, transform: np.ndarray, codebooks: np.ndarray, *, unit: bool) -> None:
        import faiss

        self.index, self.transform, self.codebooks, self.unit = index, transform, codebooks, unit
        self.dimension, self.bytes_per_vector = int(index.d), int(index.sa_code_size())
        self._books: Any = faiss.ProductQuantizer(self.dimension, len(codebooks), 8)
        faiss.copy_array_to_vector(np.ascontiguousarray(codebooks, dtype=np.float32).ravel(), self._books.centroids)

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Codec.arrays`."""
        return {"transform": self.transform, "codebooks": self.codebooks}

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """See `Codec.encode`."""
        return self.index.sa_encode(np.ascontiguousarray(vectors, dtype=np.float32))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Codec.decode`."""
        vectors = self._books.decode(np.ascontiguousarray(codes)) @ self.transform
        return unit_rows(vectors) if self.unit else vectors


def distill_codebooks(index: Any, documents: Tokens, lessons: Lessons, seed: int, *, unit: bool) -> DistilledCodec:
    """Learn codebooks and transform by the MaxSim of a sample of documents.

    Args:
        index: A trained OPQ (FAISS, PreTransform and PQ), which it starts from.
        documents: The sample.
        lessons: Training queries; a part is held out and decides which step is kept, the start's if none is better.
        seed: Of batches and of what is held out.
        unit: Give decoded vectors length 1, in learning as in search.

    Raises:
        UserError: Too few queries.
    """
    if len(lessons.queries) < _FEWEST:
        raise UserError(
            f"codec 'distilled-pq' learns from at least {_FEWEST} queries, there are {len(lessons.queries)}; "
            "give more or choose 'pq'."
        )
    import torch

    random = np.random.default_rng(seed)
    order = random.permutation(len(lessons.queries))
    held = order[: max(1, int(_HELD_OUT * len(order)))]
    training = order[len(held) :]
    lists = _Lists(index, documents, lessons, unit=unit)
    fixed = [lists.batch(held[start : start + _QUERIES], random) for start in range(0, len(held), _QUERIES)]
    optimizer = torch.optim.Adam([lists.transform, lists.books], lr=_RATE)
    best, kept = lists.mean_loss(fixed), lists.codec(index)
    with bar(_STEPS, "learning codebooks of tokens", "steps") as progress:
        for step in range(1, _STEPS + 1):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * min(1.0, 10 * step / _STEPS) * (1 - (step - 1) / _STEPS)
            optimizer.zero_grad()
            lists.loss(lists.batch(random.choice(training, min(_QUERIES, len(training)), False), random)).backward()
            optimizer.step()
            progress.update(1)
            if step % (_STEPS // _EVALUATIONS) == 0 and (loss := lists.mean_loss(fixed)) < best:
                best, kept = loss, lists.codec(index)
    return kept


class _Lists:
    """Lists of documents for batches of queries, their exact scores, and the scores of their quantized tokens."""

    def __init__(self, index: Any, documents: Tokens, lessons: Lessons, *, unit: bool) -> None:
        import torch

        from retrodistill.quantizers.start import read_index

        index.reset()
        index.add(np.ascontiguousarray(documents.vectors))
        parts = read_index(index)
        index.reset()
        self.documents, self.lessons, self.unit = documents, lessons, unit
        self.codes = torch.from_numpy(parts.codes)
        self.transform = torch.nn.Parameter(torch.from_numpy(parts.rotation.copy()))
        self.books = torch.nn.Parameter(torch.from_numpy(parts.codebooks.copy()))
        self.exact = maxsim(lessons.queries, documents)
        own = np.flatnonzero(lessons.sources >= 0)
        self.temperature = float(np.std(self.exact, axis=1).mean()) / _SHARPNESS
        self.exact[own, lessons.sources[own]] = -np.inf
        depth = min(_DEPTH, len(documents))
        self.nearest = np.argpartition(-self.exact, depth - 1, axis=1)[:, :depth]

    def batch(self, queries: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The queries, and the rows of all documents that each of them is to order."""
        others = random.integers(0, len(self.documents), _RANDOM)
        return queries, np.unique(np.concatenate([self.nearest[queries].ravel(), others]))

    def loss(self, batch: tuple[np.ndarray, np.ndarray]) -> Tensor:
        """KL of a batch."""
        import torch

        from retrodistill.objectives.distributions import kl_divergence

        queries, rows = batch
        exact = torch.from_numpy(self.exact[np.ix_(queries, rows)])
        mask = torch.isfinite(exact)
        temperatures = {"student_temperature": self.temperature, "teacher_temperature": self.temperature}
        return kl_divergence(self._scores(queries, rows), exact.where(mask, 0.0), mask, **temperatures)

    def mean_loss(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
        """Mean over queries of several batches, without gradients."""
        import torch

        with torch.no_grad():
            total = sum(len(batch[0]) * float(self.loss(batch)) for batch in batches)
        return total / sum(len(queries) for queries, _ in batches)

    def codec(self, index: Any) -> DistilledCodec:
        """What has been learned so far."""
        arrays = [parameter.detach().numpy().copy() for parameter in (self.transform, self.books)]
        return DistilledCodec(index, *arrays, unit=self.unit)

    def _scores(self, queries: np.ndarray, rows: np.ndarray) -> Tensor:
        """(queries, rows) MaxSim of quantized documents, padded to the longest of the batch."""
        import torch

        asked = [self.lessons.queries[row] for row in queries]
        vectors = torch.from_numpy(np.concatenate(asked))
        lengths, starts = self.documents.lengths[rows], self.documents.bounds[rows]
        inside = np.arange(lengths.max()) < lengths[:, None]
        places = torch.from_numpy(np.where(inside, starts[:, None] + np.arange(lengths.max()), starts[:, None]))
        subspaces, words, _ = self.books.shape
        codes = self.codes[places.flatten()] + torch.arange(subspaces) * words
        rebuilt = self.books.flatten(0, 1).index_select(0, codes.flatten()).view(len(codes), -1)
        decoded = rebuilt @ self.transform
        if self.unit:
            decoded = torch.nn.functional.normalize(decoded, dim=1)
        nearest = (
            (vectors @ decoded.T).view(len(vectors), len(rows), -1).amax(dim=2)
        )  # padding repeats a document's first token
        owner = torch.from_numpy(np.repeat(np.arange(len(asked)), [len(one) for one in asked]))
        return torch.zeros(len(asked), len(rows)).index_add(0, owner, nearest)
