"""A cross-encoder as a ranker: raw logits, computed once and kept in a store by the texts of the pair."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from retrodistill.core.cache import cache_folder
from retrodistill.core.engines import Computation, Task, check_same_model, compute
from retrodistill.core.errors import UserError
from retrodistill.core.files import read_whole
from retrodistill.core.manifest import Manifest
from retrodistill.core.runtime import log
from retrodistill.core.stores import slug, text_keys
from retrodistill.core.turns import in_turn
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import chosen_export
from retrodistill.encoders.contract import (
    TOKENS_PER_PASS,
    EncodingSettings,
    current_encoding,
    encode_with,
    tokens_per_pass,
)
from retrodistill.encoders.embeddings import KeyedStore
from retrodistill.encoders.loading import load_cross_encoder, require_scoring_head
from retrodistill.encoders.modules import configurations, settings_of, tokenizers_digest, weights_digest
from retrodistill.encoders.names import ModelName
from retrodistill.encoders.onnx_runtime import OnnxExport
from retrodistill.rankers.protocol import Ranker, Work, pair_texts
from retrodistill.runs.run import Run

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

PairScorer = Callable[[Sequence[tuple[str, str]]], np.ndarray]
_PROBE = 32  # pairs that measure the rate


def decisive_settings(model: CrossEncoder) -> dict[str, Any]:
    """What decides a score besides the weights, the maximum length and the prompt, as JSON values."""
    modules: list[Any] = list(model)
    return {
        "modules": [settings_of(module) for module in modules],
        "tokenizers": tokenizers_digest(modules),
        "configurations": configurations(modules),
    }


class CrossEncoderRanker(Ranker):
    """Raw float32 logits of a sentence-transformers cross-encoder (a sigmoid would saturate and tie the top).

    The model needs an identity activation; `root` is the folder of score stores, the shared cache by default.
    `loaded_from` is the name by which any process can load the model; None for a model that was made here.
    """

    kind = "cross-encoder"
    can_score_pairs = can_time_pairs = True
    is_exported = False  # whether it runs in ONNX Runtime

    def __init__(
        self, model: CrossEncoder, name: str, root: Path | None = None, loaded_from: ModelName | None = None
    ) -> None:
        self.model, self.name, self.root, self.loaded_from = model, name, root, loaded_from
        self.encoding = current_encoding().on(model)

    @property
    def student_kind(self) -> str:
        """``cross-encoder``; or ``prett`` or ``tk``, which are saved as cross-encoders and can store documents."""
        return str(getattr(self.model[0], "kind", "cross-encoder"))

    @cached_property
    def owner(self) -> Manifest:
        """What its scores depend on, which stores of them are for."""
        settings = {
            "max_length": self.model.max_seq_length,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "activation": "identity",
            "prompt": self.prompt,
            **decisive_settings(self.model),
        }
        if self.encoding.precision != "float32":  # absent for float32, so that keys of older stores stay the same
            settings["precision"] = self.encoding.precision
        return Manifest("teacher", {"weights": weights_digest(self.model)}, settings, {"name": self.name})

    @property
    def library_model(self) -> CrossEncoder:
        """The model."""
        return self.model

    @property
    def prompt(self) -> str:
        """The model's own prompt, the prefix of a pair; empty if it has none."""
        return str((self.model.prompts or {}).get(self.model.default_prompt_name or "", ""))

    def fingerprint(self, collection: Collection) -> str:
        """Digest of weights, modules, tokenizer, configuration, maximum length, prompt, dtype and activation."""
        return self.owner.fingerprint

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with logits; pairs in the store are not scored again."""
        store = ScoreStore(self.name, self.owner, self.root)
        texts = pair_texts(queries, collection, pairs)
        store.fill(*texts, self.logits, self._task())
        return pairs.with_scores(store.gather(*texts), self.name)

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """Pairs that are not in the store."""
        store = ScoreStore(self.name, self.owner, self.root)
        items, seconds = store.seconds(*pair_texts(queries, collection, pairs), self.logits, self._task())
        return Work(items, "pairs", seconds)

    def pair_fn(self, collection: Collection) -> Callable[[str, np.ndarray], np.ndarray]:
        """Score a query with documents, without the store."""
        documents, ids = collection.documents, collection.documents.ids

        def score(query: str, rows: np.ndarray) -> np.ndarray:
            texts = documents.select([ids[row] for row in rows]).texts
            return self.logits([(query, text) for text in texts]) if texts else np.zeros(0, dtype=np.float32)

        return score

    @property
    def queries_by(self) -> str:
        """Its own name: it reads queries and documents together."""
        return self.name

    def _task(self) -> ScoringTask | None:
        if self.loaded_from is None:
            return None
        return ScoringTask(self.loaded_from, self.encoding, self.owner.fingerprint)

    def logits(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """(n,) float32 raw scores of (query, document) pairs."""
        import torch

        device, prompt = self.model.device, self.prompt
        bytes_of = [len(prompt.encode()) + len(query.encode()) + len(document.encode()) for query, document in pairs]
        logits = np.empty(len(pairs), dtype=np.float32)
        with in_turn(self.model[0]), self.encoding.autocast(device):
            for rows in self.encoding.batches(bytes_of, self.model.max_seq_length, tokens_per_pass(device)):
                batch = self.model.predict(
                    [pairs[row] for row in rows],
                    batch_size=len(rows),
                    activation_fn=torch.nn.Identity(),
                    show_progress_bar=False,
                    convert_to_tensor=True,
                )
                logits[rows] = batch.float().cpu().numpy()
        return logits


class OnnxCrossEncoderRanker(CrossEncoderRanker):
    """The same in ONNX Runtime; torch and the model are loaded when something else asks for it.

    `load` loads the model.
    """

    is_exported = True
    student_kind = "cross-encoder"  # others are not exported

    def __init__(
        self,
        export: OnnxExport,
        name: str,
        load: Callable[[], CrossEncoder],
        root: Path | None = None,
        loaded_from: ModelName | None = None,
    ) -> None:
        self.export, self.name, self.root, self.loaded_from, self._load = export, name, root, loaded_from, load
        self.encoding = current_encoding().in_onnx()

    @cached_property
    def model(self) -> CrossEncoder:  # type: ignore[override]  # an attribute of the base
        """The sentence-transformers model."""
        return self.export.with_model(self._load)

    @cached_property
    def owner(self) -> Manifest:
        """As `CrossEncoderRanker.owner`, with the graph."""
        of_model = Manifest("teacher", **self.export.manifest.about["owner"])
        return replace(of_model, settings={**of_model.settings, "graph": self.export.checksum})

    @property
    def prompt(self) -> str:
        """As `CrossEncoderRanker.prompt`."""
        return str(self.export.manifest.about["prompt"])

    def logits(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """As `CrossEncoderRanker.logits`."""
        if not pairs:
            return np.zeros(0, dtype=np.float32)
        prompt = self.prompt
        return self.export.graph.run([(prompt + query, document) for query, document in pairs], TOKENS_PER_PASS)[:, 0]


def open_cross_encoder(name: ModelName, root: Path | None = None) -> CrossEncoderRanker:
    """The ranker of a cross-encoder, in ONNX Runtime by the current encoding settings.

    Raises:
        UserError: The model has no head that scores pairs; or what `chosen_export` raises.
    """
    load, of = partial(load_cross_encoder, name.name, keep_adapters=True), name.anywhere

    def read() -> CrossEncoderRanker:
        export = chosen_export(name)
        if export is not None:
            return OnnxCrossEncoderRanker(export.loaded(), str(name), load, root, of)
        ranker = CrossEncoderRanker(load(), str(name), root, of)
        require_scoring_head(name.name)
        return ranker

    return read_whole(name.name, read)


@dataclass(frozen=True)
class ScoringTask:
    """Scores pairs in any process that can load the cross-encoder."""

    model: ModelName
    encoding: EncodingSettings
    fingerprint: str

    def open(self) -> PairScorer:
        """The scorer; a missing model or another one is a UserError."""
        with encode_with(self.encoding):
            ranker = open_cross_encoder(self.model)
        check_same_model(ranker.name, ranker.owner.fingerprint, self.fingerprint)
        return ranker.logits


class ScoreStore(KeyedStore):
    """Raw float32 scores of one teacher, keyed by the texts of query and document, in Parquet parts.

    Methods take pairs as two parallel lists of texts. Its owner is the teacher's manifest (weights, prompt, maximum
    length, dtype, activation). In the shared cache, the default, each version of a teacher has its own folder; in a
    given `root` a store of another version is a UserError, as is a folder that would have to be written and cannot be.
    Unless `is_complete`, NaN is the score of a pair that the teacher could not score: it is not stored, and asked for
    again.
    """

    unit = "pairs"

    def __init__(self, name: str, owner: Manifest, root: Path | None = None, *, is_complete: bool = True) -> None:
        folder = root / slug(name) if root else cache_folder() / "scores" / f"{slug(name)}-{owner.fingerprint}"
        self.name, self.is_complete = name, is_complete
        super().__init__(folder, owner, ".parquet")

    def missing(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Positions of the distinct pairs without a score, in order."""
        return self._absent(_pair_keys(queries, documents))

    def fill(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        score: PairScorer,
        task: Task | None = None,
        *,
        part: int | None = None,
        threads: int = 1,
        by_query: bool = False,
    ) -> None:
        """Score missing pairs, longest first, one part at a time. Safe to kill and to run concurrently.

        `task` gives other processes the function `score`; without it, only this process can score, in `threads` at
        once. A part has up to `part` pairs, and with `by_query` only pairs of one query.

        Raises:
            UserError: The teacher gives a score that is not finite, or not one per pair.
        """
        sizes = np.array([len(query) + len(document) for query, document in zip(queries, documents, strict=True)])
        keys, computation = _pair_keys(queries, documents), Computation(score, task, part, threads)
        groups = keys["query"] if by_query else None
        title = f"scoring ({self.name})"
        self._fill(keys, sizes, lambda row: (queries[row], documents[row]), computation, title, groups)

    def _part(self, items: Sequence[tuple[str, str]], results: Any) -> pa.Table:
        with np.errstate(over="ignore"):  # values beyond float32 become infinite and are rejected below
            scores = np.asarray(results, dtype=np.float32)
        if scores.shape != (len(items),):
            shape = f"scores of shape {scores.shape} for {len(items)} pairs"
            raise UserError(f"teacher {self.name} gave {shape}; give one per pair.")
        if not self.is_complete:
            is_known = ~np.isnan(scores)
            items, scores = list(itertools.compress(items, is_known)), scores[is_known]
        if not np.isfinite(scores).all():
            query, document = (text[:40] for text in items[int(np.flatnonzero(~np.isfinite(scores))[0])])
            raise UserError(
                f"teacher {self.name} gave a score that is not finite for {query!r} and {document!r}; "
                "nothing of this batch was kept."
            )
        keys = (text_keys([pair[side] for pair in items]) for side in (0, 1))
        return pa.table(dict(zip(("query", "document", "score"), map(pa.array, (*keys, scores)), strict=True)))

    def gather(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """(pairs,) float32 raw scores; NaN for a pair that a teacher could not score."""
        rows = self._index.find(_pair_keys(queries, documents))
        if not self.is_complete:
            return np.where(rows < 0, np.nan, self._scores[rows]) if len(self._scores) else np.full(len(rows), np.nan)
        if (rows < 0).any():
            raise UserError(f"{int((rows < 0).sum())} pairs are not in the store of {self.name}; score them first.")
        return self._scores[rows]

    def scored(self, pairs: Run, texts: tuple[Sequence[str], Sequence[str]]) -> Run:
        """The pairs with their scores, without those that the teacher could not score, whose number is logged.

        Raises:
            UserError: It could not score any.
        """
        return with_known_scores(pairs, self.gather(*texts), self.name)

    def seconds(
        self, queries: Sequence[str], documents: Sequence[str], score: PairScorer, task: Task | None = None
    ) -> tuple[int, float]:
        """Number of pairs to score, and the seconds that one process takes at the rate measured on up to 32 of them.

        As in `fill`, `task` gives other processes the function `score`.
        """
        todo = self.missing(queries, documents)
        if not len(todo):
            return 0, 0.0
        rows = todo[np.linspace(0, len(todo) - 1, min(_PROBE, len(todo)), dtype=int)]
        probe = [(queries[row], documents[row]) for row in rows]
        computation = Computation(score, task)
        compute(probe[:1], computation)  # the first call is slower
        start = time.perf_counter()
        compute(probe, computation)
        return len(todo), len(todo) * (time.perf_counter() - start) / len(probe)

    def _read(self, tables: list[pa.Table]) -> np.ndarray:
        query, document, self._scores = (
            np.concatenate([np.zeros(0, dtype=kind), *(table[column].to_numpy() for table in tables)])
            for column, kind in (("query", np.uint64), ("document", np.uint64), ("score", np.float32))
        )
        return _joined(query, document)


def with_known_scores(pairs: Run, scores: np.ndarray, name: str) -> Run:
    """The pairs with (pairs,) scores of a teacher, without those of NaN, whose number is logged; none is an error."""
    is_known = np.isfinite(scores)
    if not is_known.any() and len(pairs):
        raise UserError(f"{name} scored none of {len(pairs)} pairs; check its settings.")
    if not is_known.all():
        log(f"{name}: no readable score of {int((~is_known).sum())} of {len(pairs)} pairs; they are left out")
    return pairs.filter(is_known).with_scores(scores[is_known], name)


def _pair_keys(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    return _joined(_keys(queries), _keys(documents))


def _keys(texts: Sequence[str]) -> np.ndarray:
    """Keys of texts; each distinct text, which may occur often, is digested once."""
    distinct = list(dict.fromkeys(texts))
    keys = dict(zip(distinct, text_keys(distinct), strict=True))
    return np.fromiter(map(keys.__getitem__, texts), dtype=np.uint64, count=len(texts))


def _joined(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(pairs,) records of two uint64 keys: one sortable value per pair."""
    joined = np.empty(len(queries), dtype=[("query", "<u8"), ("document", "<u8")])
    joined["query"], joined["document"] = queries, documents
    return joined
