"""The steps of learning: batches, loss, optimizer, held-out agreement."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.objectives.distributions import kl_divergence, listnet, reverse_kl
from retrodistill.objectives.margins import margin_mse
from retrodistill.objectives.pointwise import mse
from retrodistill.quantizers.assignment import nearest_codes, nearest_lists
from retrodistill.quantizers.quantizer import Quantizer
from retrodistill.quantizers.settings import QuantizerSettings
from retrodistill.quantizers.start import Codes
from retrodistill.quantizers.targets import Targets
from retrodistill.runs.agreement import rank_agreement

_TOP = 10
_WARM = 0.1
_OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": kl_divergence,
    "reverse-kl": reverse_kl,
    "listnet": listnet,
    "margin-mse": margin_mse,
    "mse": mse,
}


class Learner:
    """Quantizer, query map, batches and optimizer of one run of learning.

    Args:
        start: Parts to begin with.
        targets: Queries, documents and the scores to learn from.
        sources: (q,) own documents of pseudo-queries, -1 for real ones.
        settings: How.
    """

    def __init__(
        self,
        start: Codes,
        targets: Targets,
        sources: np.ndarray,
        settings: QuantizerSettings,
    ) -> None:
        self.settings, self.sources, self.targets = settings, sources, targets
        documents, queries = targets.documents, targets.queries
        self.documents, self.queries = torch.from_numpy(documents), torch.from_numpy(queries)
        self.generator = np.random.default_rng(settings.seed)
        training, self.held = split(sources, settings, self.generator)
        self.real, self.pseudo = training[sources[training] < 0], training[sources[training] >= 0]
        self.temperature = settings.temperature or targets.spread(training) / settings.target_std
        self.wanted = targets.best(self.held, min(_TOP, len(documents)))
        self.near = None if len(documents) <= settings.whole else self._near(training)
        self.quantizer = Quantizer(start, settings.transform)
        self.map = nn.Parameter(torch.eye(documents.shape[1]), requires_grad=settings.query_map)
        self.unit = bool(np.allclose(np.linalg.norm(queries, axis=1), 1.0, atol=1e-3))
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.quantizer.parameters()), "lr": settings.learning_rate},
                {"params": [self.map], "lr": settings.query_map_rate},
            ]
        )
        warm = max(1, round(_WARM * settings.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / warm) * max(0.0, 1 - step / settings.steps)
        )

    def step(self) -> float:
        """One batch; its loss."""
        rows = self._batch()
        columns = self._columns(rows)
        targets, mask = self._targets(rows, columns)
        asked = self._asked(rows)
        where = None if columns is None else torch.from_numpy(columns)
        loss = self._loss(self.quantizer(asked, where), targets, mask)
        if self.quantizer.centroids is not None and self.quantizer.lists is not None and self.settings.list_weight:
            lists = self.quantizer.lists if where is None else self.quantizer.lists[where]
            by_list = self.quantizer.list_scores(asked)[:, lists]
            loss = loss + self.settings.list_weight * self._loss(by_list, targets, mask)
        if self.settings.query_map and self.settings.query_map_weight:
            away = self.map - torch.eye(len(self.map))
            loss = loss + self.settings.query_map_weight * away.square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.quantizer.tangent()
        self.optimizer.step()
        self.schedule.step()
        self.quantizer.straighten()
        return float(loss.detach())

    @torch.no_grad()
    def agreement(self) -> float:
        """Of the quantized ranking with the teacher's top 10 on held-out queries; with lists, an eighth is probed."""
        found, rebuilt = [], self.quantizer.rebuilt()
        for start in range(0, len(self.held), 128):
            asked = self._asked(self.held[start : start + 128])
            scores = (asked @ self.quantizer.transform.T) @ rebuilt.T
            if self.quantizer.centroids is not None and self.quantizer.lists is not None:
                by_list = self.quantizer.list_scores(asked)
                probed = by_list >= by_list.topk(max(1, by_list.shape[1] // 8), dim=1).values[:, -1:]
                scores = scores.masked_fill(~probed[:, self.quantizer.lists], -torch.inf)
            found.append(scores.topk(self.wanted.shape[1], dim=1).indices.numpy())
        return float(rank_agreement(np.concatenate(found), self.wanted).mean())

    @torch.no_grad()
    def reassign(self, step: int) -> None:
        """Choose lists and codes again, where the settings say so; not in the last third of the steps."""
        if step > self.settings.steps * 2 / 3:
            return
        quantizer = self.quantizer
        moved = None
        if quantizer.lists is not None and self.settings.lists == "reassigned":
            lists = nearest_lists(quantizer, self.documents)
            moved = torch.nonzero(lists != quantizer.lists)[:, 0]
            quantizer.lists = lists
        if self.settings.codes == "nearest":
            moved = torch.arange(len(self.documents))
        if moved is not None and len(moved):
            quantizer.codes[moved] = nearest_codes(quantizer, self.documents[moved], moved)

    def parts(self) -> Codes:
        """The quantizer's parts as they are now."""
        return self.quantizer.parts()

    def map_as_array(self) -> np.ndarray | None:
        """(d, d) float32 query map as it is now, None where none is learned."""
        return self.map.detach().numpy().copy() if self.settings.query_map else None

    def _batch(self) -> np.ndarray:
        """(batch,) rows of queries: real ones and pseudo-queries in their shares."""
        size = self.settings.batch_size
        real = round(self.settings.real_share * size) if len(self.pseudo) else size
        real = real if len(self.real) else 0
        return np.concatenate(
            [pool[self.generator.integers(len(pool), size=count)] for pool, count in
             ((self.real, real), (self.pseudo, size - real)) if count]
        )  # fmt: skip

    def _columns(self, rows: np.ndarray) -> np.ndarray | None:
        """Documents that this batch is scored against; None for all."""
        if self.near is None:
            return None
        random = self.generator.integers(len(self.documents), size=self.settings.sampled)
        return np.unique(np.concatenate([self.near[rows].ravel(), random]))

    def _targets(self, rows: np.ndarray, columns: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """(batch, n) teacher scores and the mask, which hides a pseudo-query's own document."""
        if columns is None:
            scores, places = self.targets.scores(rows), np.arange(len(self.documents))
        else:
            scores, places = self.targets.scores(rows, columns), columns
        mask = places[None, :] != self.sources[rows][:, None]
        return torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32)), torch.from_numpy(mask)

    def _asked(self, rows: np.ndarray) -> Tensor:
        """(batch, d) queries through the map; unit vectors stay unit vectors."""
        queries = self.queries[torch.from_numpy(rows)]
        if not self.settings.query_map:
            return queries
        mapped = queries @ self.map.T
        return nn.functional.normalize(mapped, dim=1) if self.unit else mapped

    def _loss(self, scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """The objective at the measured temperature."""
        return _OBJECTIVES[self.settings.objective](scores / self.temperature, targets / self.temperature, mask)

    def _near(self, training: np.ndarray) -> np.ndarray:
        """(q, depth) best documents of every training query."""
        depth = min(self.settings.depth, len(self.documents))
        near = np.zeros((len(self.queries), depth), dtype=np.int64)
        near[training] = self.targets.best(training, depth)
        return near


def split(
    sources: np.ndarray, settings: QuantizerSettings, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out: real queries where there are at least 20, else any."""
    real = np.flatnonzero(sources < 0)
    pool = generator.permutation(real if len(real) >= 20 else np.arange(len(sources)))
    count = min(max(1, int(settings.held_out * len(pool))), settings.held_out_most)
    held = np.sort(pool[:count])
    return np.setdiff1d(np.arange(len(sources)), held), held
