"""A product quantizer with gradients, and the steps that train it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.objectives.distributions import kl_divergence, listnet, reverse_kl
from retrodistill.objectives.scores import margin_mse, mse
from retrodistill.quantizers.bits import fit_bits
from retrodistill.quantizers.codes import ALL, Codes, Rows, read_vectors
from retrodistill.quantizers.settings import QuantizerSettings
from retrodistill.runs.agreement import rank_agreement

if TYPE_CHECKING:
    from retrodistill.quantizers.learning import Targets

_TOP = 10  # documents per held-out query whose ranking is compared
_WARMUP = 0.1  # of the steps
_PROBED = 8  # held-out searches probe one list in eight
_BLOCK = 8192  # documents that get lists or codes at once
_OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": kl_divergence,
    "reverse-kl": reverse_kl,
    "listnet": listnet,
    "margin-mse": margin_mse,
    "mse": mse,
}


class Quantizer(nn.Module):
    """Scores queries against coded documents as FAISS does: ``<A q, codewords + centroid>``.

    It begins with the parts of a start; the transform is one of `QuantizerSettings.transform`.
    """

    codes: Tensor
    lists: Tensor | None  # together with the centroids
    centroids: Any

    def __init__(self, start: Codes, transform: str) -> None:
        super().__init__()
        self.start = start
        is_kept = not start.rotated or (start.single_bits and transform == "rotation")
        self.kind = "fixed" if is_kept else transform
        self.transform = nn.Parameter(torch.from_numpy(start.rotation.copy()), requires_grad=self.kind != "fixed")
        self.codebooks = nn.Parameter(torch.from_numpy(start.codebooks.copy()))
        self.centroids = None if start.centroids is None else nn.Parameter(torch.from_numpy(start.centroids.copy()))
        self.register_buffer("codes", torch.from_numpy(start.codes.copy()))
        self.register_buffer("lists", None if start.lists is None else torch.from_numpy(start.lists.copy()))
        subspaces, words, _ = self.codebooks.shape
        self._offsets = torch.arange(subspaces) * words

    def reconstruct(self, rows: Rows = ALL) -> Tensor:
        """(n, width) documents, or those of `rows`, in the space of the codes; differentiable in the codebooks."""
        codes = self.codes[rows]
        inner = self.codebooks.flatten(0, 1).index_select(0, (codes + self._offsets).flatten()).view(len(codes), -1)
        if self.lists is not None:
            inner = inner + self.centroids.index_select(0, self.lists[rows])
        return inner

    def forward(self, queries: Tensor, rows: Rows = ALL) -> Tensor:
        """(batch, n) scores of (batch, d) queries with all documents or those of `rows`."""
        return (queries @ self.transform.T) @ self.reconstruct(rows).T

    def list_scores(self, queries: Tensor) -> Tensor:
        """(batch, lists) inner products with the centroids, which decide the lists that are probed."""
        return (queries @ self.transform.T) @ self.centroids.T

    def project_gradient(self) -> None:
        """Before an optimizer step: keep only the part of the rotation's gradient that is tangent to rotations."""
        if self.kind == "rotation" and self.transform.grad is not None:
            inward = self.transform.grad @ self.transform.detach().T
            self.transform.grad -= (inward + inward.T) / 2 @ self.transform.detach()

    @torch.no_grad()
    def orthonormalize(self) -> None:
        """After an optimizer step: make the rotation's rows orthonormal again by two Newton-Schulz iterations."""
        if self.kind == "rotation":
            for _ in range(2):
                rows = self.transform.data
                self.transform.data = 1.5 * rows - 0.5 * (rows @ rows.T) @ rows

    @torch.no_grad()
    def nearest_codes(self, documents: Tensor, rows: Tensor) -> Tensor:
        """(n, M) uint8 nearest codewords of (n, d) documents, which FAISS assigns on `add`; `rows` give their lists."""
        inner = documents @ self.transform.T
        if self.lists is not None:
            inner = inner - self.centroids[self.lists[rows]]
        parts = inner.view(len(documents), len(self.codebooks), -1).transpose(0, 1)
        lengths = self.codebooks.square().sum(dim=2)
        distances = lengths[:, None, :] - 2 * torch.bmm(parts, self.codebooks.transpose(1, 2))
        return distances.argmin(dim=2).T.to(self.codes.dtype)

    @torch.no_grad()
    def take(self, codes: Codes) -> None:
        """Go on with another transform, other codebooks, and other codes of the same shapes."""
        self.transform.copy_(torch.from_numpy(codes.rotation))
        self.codebooks.copy_(torch.from_numpy(codes.codebooks))
        self.codes.copy_(torch.from_numpy(codes.codes))

    def parts(self) -> Codes:
        """The learned parts as arrays."""
        parts: dict[str, Any] = {"rotation": self.transform, "codebooks": self.codebooks, "codes": self.codes}
        if self.lists is not None:
            parts |= {"centroids": self.centroids, "lists": self.lists}
        return replace(self.start, **{name: part.detach().numpy().copy() for name, part in parts.items()})


class Learner:
    """Quantizer, query map, batches and optimizer of one run of learning."""

    def __init__(self, start: Codes, targets: Targets, settings: QuantizerSettings) -> None:
        self.settings, self.targets = settings, targets
        self.queries, (documents, dimension) = torch.from_numpy(targets.queries), targets.documents.shape
        self.generator = np.random.default_rng(settings.seed)
        training, self.held_out = settings.split(targets.sources, self.generator)
        is_real = targets.sources[training] < 0
        self.real, self.pseudo = training[is_real], training[~is_real]
        parts = targets.parts
        self.ranked, of_ranked = parts[0], targets.within(parts[0])  # documents that held-out queries rank
        self.temperature = settings.temperature or of_ranked.spread(training) / settings.target_std
        self.held_out_best = of_ranked.best(self.held_out, min(_TOP, documents))
        self.near: np.ndarray | None = None  # best documents of every training query, in its part of the corpus
        if documents > settings.whole or len(parts) > 1:
            self.near = np.zeros((len(self.queries), min(settings.depth, documents // len(parts))), dtype=np.int64)
            for number, part in enumerate(parts):
                queries = training[number :: len(parts)]
                found = targets.within(part).best(queries, self.near.shape[1])
                self.near[queries] = np.arange(documents)[part][found]
        self.quantizer = Quantizer(start, settings.transform)
        self.map = nn.Parameter(torch.eye(dimension), requires_grad=settings.query_map)
        self.unit = bool(np.allclose(np.linalg.norm(targets.queries, axis=1), 1.0, atol=1e-3))
        of_map: dict[str, Any] = {"params": [self.map], "lr": settings.query_map_rate}
        self.optimizer = torch.optim.Adam([{"params": [*self.quantizer.parameters()]}, of_map], settings.learning_rate)
        warm = max(1, round(_WARMUP * settings.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / warm) * max(0.0, 1 - step / settings.steps)
        )

    def step(self) -> float:
        """Train on one batch and return its loss."""
        quantizer, settings = self.quantizer, self.settings
        rows = self._batch()
        columns = self._columns(rows)
        targets, mask = self._targets(rows, columns)
        queries = self._mapped(rows)
        loss = self._loss(quantizer(queries, columns), targets, mask)
        if quantizer.lists is not None and settings.list_weight:
            by_list = quantizer.list_scores(queries)[:, quantizer.lists[columns]]
            loss = loss + settings.list_weight * self._loss(by_list, targets, mask)
        if settings.query_map and settings.query_map_weight:
            loss = loss + settings.query_map_weight * (self.map - torch.eye(len(self.map))).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        quantizer.project_gradient()
        self.optimizer.step()
        self.schedule.step()
        quantizer.orthonormalize()
        return float(loss.detach())

    def fit_bits(self) -> None:
        """Fit single bits to the documents, together with the map that decodes them."""
        self.quantizer.take(fit_bits(self.quantizer.start, self.targets.documents))

    @torch.no_grad()
    def agreement(self) -> float:
        """Agreement of the quantized ranking with the teacher's top 10 on held-out queries, 0 to 1."""
        best, quantizer, documents = [], self.quantizer, self.quantizer.reconstruct(self.ranked)
        for start in range(0, len(self.held_out), 128):
            queries = self._mapped(self.held_out[start : start + 128])
            scores = (queries @ quantizer.transform.T) @ documents.T
            if quantizer.lists is not None:
                by_list = quantizer.list_scores(queries)
                probed = by_list >= by_list.topk(max(1, by_list.shape[1] // _PROBED), dim=1).values[:, -1:]
                scores = scores.masked_fill(~probed[:, quantizer.lists[self.ranked]], -torch.inf)
            best.append(scores.topk(self.held_out_best.shape[1], dim=1).indices.numpy())
        return float(rank_agreement(np.concatenate(best), self.held_out_best).mean())

    @torch.no_grad()
    def reassign(self, step: int) -> None:
        """Assign lists and codes again where the settings ask for it, but not in the last third of the steps."""
        if step > self.settings.steps * 2 / 3:
            return
        quantizer = self.quantizer
        moves = self.settings.lists == "reassigned" and quantizer.lists is not None
        if not moves and (self.settings.codes == "kept" or quantizer.start.single_bits):
            return
        for block in torch.arange(len(quantizer.codes)).split(_BLOCK):
            documents, coded = torch.from_numpy(read_vectors(self.targets.documents, block.numpy())), block
            if quantizer.lists is not None and moves:  # to the lists of highest inner product, as FAISS on `add`
                lists = quantizer.list_scores(documents).argmax(dim=1)
                moved = lists != quantizer.lists[block]
                quantizer.lists[block] = lists
                if self.settings.codes == "kept":
                    documents, coded = documents[moved], block[moved]
            if len(coded):
                quantizer.codes[coded] = quantizer.nearest_codes(documents, coded)

    def state(self) -> tuple[Codes, np.ndarray | None]:
        """The learned parts, and the (d, d) float32 query map; None where none is learned."""
        return self.quantizer.parts(), self.map.detach().numpy().copy() if self.settings.query_map else None

    def _batch(self) -> np.ndarray:
        """(batch,) rows of queries: real queries and pseudo-queries in their shares."""
        size = self.settings.batch_size
        share = self.settings.real_share if len(self.pseudo) else 1.0
        real = round(share * size) if len(self.real) else 0
        pools = ((self.real, real), (self.pseudo, size - real))
        return np.concatenate([pool[self.generator.integers(len(pool), size=count)] for pool, count in pools if count])

    def _columns(self, rows: np.ndarray) -> Rows:
        """Documents that this batch is scored against."""
        if self.near is None:
            return ALL
        random = self.generator.integers(len(self.quantizer.codes), size=self.settings.sampled)
        return np.unique(np.concatenate([self.near[rows].ravel(), random]))

    def _targets(self, rows: np.ndarray, columns: Rows) -> tuple[Tensor, Tensor]:
        """(batch, n) teacher scores, and a mask that hides the document that a query is not trained on."""
        scores = self.targets.scores(rows, columns)
        hidden = self.targets.sources if self.targets.hidden is None else self.targets.hidden
        mask = np.arange(len(self.quantizer.codes))[columns] != hidden[rows][:, None]
        return torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32)), torch.from_numpy(mask)

    def _mapped(self, rows: np.ndarray) -> Tensor:
        """(batch, d) queries through the map; unit vectors stay unit vectors."""
        queries = self.queries[torch.from_numpy(rows)]
        if not self.settings.query_map:
            return queries
        mapped = queries @ self.map.T
        return nn.functional.normalize(mapped, dim=1) if self.unit else mapped

    def _loss(self, scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        return _OBJECTIVES[self.settings.objective](scores / self.temperature, targets / self.temperature, mask)
