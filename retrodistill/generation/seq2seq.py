"""Queries by a local sequence-to-sequence model, as doc2query and GPL write them (docTTTTTquery, arXiv 2112.07577)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.engines import Computation
from retrodistill.core.errors import UserError
from retrodistill.core.http import filled
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import current_encoding, tokens_per_pass
from retrodistill.encoders.loading import load_seq2seq, quiet_libraries
from retrodistill.encoders.modules import weights_digest
from retrodistill.generation.settings import GenerationSettings
from retrodistill.rankers.chat import AnswerStore, Requests, as_json
from retrodistill.rankers.protocol import Work

if TYPE_CHECKING:
    from torch import Tensor

_TOP_K, _MAX_LENGTH = 25, 350  # of GPL
_PROBE = 16  # documents that measure the rate


class Seq2SeqGenerator:
    """Samples the queries of a document one by one.

    Each has its own source of random numbers, by the seed, its document's text and its number, so that it does not
    depend on the documents beside it.
    """

    def __init__(self, name: str, settings: GenerationSettings, store: Path | None = None) -> None:
        self.name, self.settings, self._root = f"seq2seq:{name}", settings, store
        self._template = settings.prompt or "{document}"
        if not self._template.endswith("{document}"):
            raise UserError(f"{self.name}: long prompts are cut at their end; give one that ends with {{document}}.")
        if settings.temperature == 0 and settings.per_document > 1:
            raise UserError(f"{self.name}: at temperature 0, a document's queries are equal; set per_document to 1.")
        self.model, self.tokenizer = load_seq2seq(name)
        self._encoding = current_encoding().on(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights."""
        return weights_digest(self.model)

    def requests(self, documents: Sequence[str]) -> Sequence[str]:
        """What decides the queries of each document, as JSON."""
        settings = self.settings
        sampling = {
            **settings.model_dump(include={"per_document", "temperature", "top_p", "query_tokens", "seed"}),
            "top_k": settings.top_k or _TOP_K,
            "max_length": self._max_length,
            "precision": self._encoding.precision,
        }

        def request(row: int) -> str:
            return as_json({"text": filled(self._template, {"document": documents[row]}), **sampling})

        return Requests(len(documents), request)

    def answers(self, requests: Sequence[str]) -> Iterator[str | None]:
        """The queries of each document, one per line."""
        self._store.fill(requests, Computation(self._generated, part=self._batch_size), longest_first=True)
        return self._store.gather(requests)

    def remaining(self, requests: Sequence[str]) -> Work:
        """The documents without queries, and the time that they take, measured on a few of them."""
        left = self._store.missing(requests)
        if not len(left):
            return Work(0, "documents", 0.0)
        rows = left[np.unique(np.linspace(0, len(left) - 1, min(_PROBE, len(left)), dtype=int))]
        probe = sorted((requests[row] for row in rows), key=len)
        self._generated(probe[:1])  # the first call is slower
        started = time.perf_counter()
        for start in range(0, len(probe), self._batch_size):
            self._generated(probe[start : start + self._batch_size])
        return Work(len(left), "documents", (time.perf_counter() - started) * len(left) / len(probe))

    @cached_property
    def _store(self) -> AnswerStore:
        return AnswerStore(self.name, Manifest("query generator", {"model": self.fingerprint}), self._root)

    @property
    def _max_length(self) -> int:
        return min(self.settings.max_length or _MAX_LENGTH, self.tokenizer.model_max_length)

    @property
    def _batch_size(self) -> int:
        """Documents per forward pass."""
        chosen = self._encoding.batch_size
        return max(1, tokens_per_pass(self.model.device) // self._max_length) if chosen == "auto" else chosen

    def _generated(self, requests: Sequence[str]) -> list[str]:
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        texts, count = [json.loads(request)["text"] for request in requests], self.settings.per_document
        device = self.model.device
        cut = {"truncation": True, "max_length": self._max_length, "padding": True, "return_tensors": "pt"}
        with torch.inference_mode(), quiet_libraries(), self._encoding.autocast(device):
            inputs = self.tokenizer(texts, **cut).to(device)
            mask = inputs["attention_mask"]
            # a document is read once for all of its queries
            read = self.model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
            written = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=read.repeat_interleave(count, dim=0)),
                attention_mask=mask.repeat_interleave(count, dim=0),
                max_new_tokens=self.settings.query_tokens,
                do_sample=False,  # the processors sample
                num_beams=1,
                logits_processor=self._processors([f"{n} {request}" for request in requests for n in range(count)]),
            )
        lines = [" ".join(line.split()) for line in self.tokenizer.batch_decode(written, skip_special_tokens=True)]
        return ["\n".join(lines[start : start + count]) for start in range(0, len(lines), count)]

    def _processors(self, sources: Sequence[str]) -> Any:
        """What turns the most likely token into a sample; `sources` decide the random numbers of each query."""
        from transformers.generation import logits_process as library

        settings = self.settings
        processors = library.LogitsProcessorList()
        if settings.temperature > 0:
            processors.append(library.TemperatureLogitsWarper(settings.temperature))
            processors.append(library.TopKLogitsWarper(settings.top_k or _TOP_K))
            processors.append(library.TopPLogitsWarper(settings.top_p))
            processors.append(_gumbel_noise(sources))
        return processors


def _gumbel_noise(sources: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor]:
    """Adds Gumbel noise to (queries, vocabulary) logits, each query's from its own generator.

    The most likely token is then a sample (Gumbel-max trick, Maddison et al. 2014, arXiv 1411.0030).
    """
    import torch

    seeds = [int.from_bytes(hashlib.blake2b(source.encode(), digest_size=7).digest()) for source in sources]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same on any device

    def with_noise(_: Tensor, logits: Tensor) -> Tensor:
        uniform = torch.stack([torch.rand(logits.shape[1], generator=generator) for generator in generators])
        return logits - torch.log(-torch.log(uniform)).to(logits.device)

    return with_noise
