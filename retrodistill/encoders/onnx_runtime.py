"""ONNX Runtime: what an export wrote into a model's folder, and running it without torch."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from retrodistill.core.checksums import DamagedError
from retrodistill.core.errors import UserError, first_line
from retrodistill.core.files import Value, read_whole
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.runtime import log

FOLDER = "onnx"  # in a model's folder, as sentence-transformers names it
TOKENIZER = f"{FOLDER}/tokenizer.json"
MISSING = "needs {packages}; install 'retrodistill[onnx]'."
_VNNI, _ARM, _PLAIN = "avx512_vnni", "arm64", "avx2"  # instructions, as they are in the names of int8 graphs
_CHUNK = 256  # texts that are tokenized at once: their tokens are Python objects
_ADVICE = "export the model to ONNX again, or use runtime=torch"


@dataclass(frozen=True, eq=False)
class OnnxExport:
    """What ``retrodistill export --to onnx`` wrote into a model's folder: graphs, a tokenizer, and a manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> OnnxExport:
        """Open the export in a model's folder.

        Raises:
            UserError: A graph is damaged, or a file of the model, such as its weights, is not the exported one.
        """
        manifest = Manifest.read(folder / FOLDER, FILE_NAME)
        try:
            manifest.check_files(folder, _ADVICE)
        except DamagedError as error:
            if error.path.parent == folder / FOLDER:
                raise
            name = error.path.relative_to(folder)
            raise UserError(
                f"{folder / FOLDER} does not belong to this model: it was exported with another {name}; {_ADVICE}."
            ) from error
        return cls(folder, manifest)

    def loaded(self) -> OnnxExport:
        """The export with its tokenizer and graph read, before another process may replace the folder."""
        _ = self.tokenizer, self.graph
        return self

    def with_model(self, load: Callable[[], Value]) -> Value:
        """The model of the folder by `load`; a UserError if the folder is another export's by now."""

        def read() -> Value:
            if (self.folder / FOLDER / FILE_NAME).exists() and self.open(self.folder).manifest != self.manifest:
                raise UserError(f"{self.folder} was replaced after it was opened; open it again.")
            return load()

        return read_whole(self.folder, read)

    @property
    def kind(self) -> str:
        """Kind of model: ``dense``, ``static``, ``sparse`` or ``cross-encoder``."""
        return str(self.manifest.about["kind"])

    @cached_property
    def roles(self) -> dict[str, dict[str, Any]]:
        """By the roles that the graph encodes, the ``contract`` and the ``prompt`` of each."""
        return dict(self.manifest.about["roles"])

    @cached_property
    def file(self) -> Path:
        """The graph for this processor: the int8 one where there is one that runs well here, else the float32 one."""
        graphs = self.manifest.about["graphs"]
        name = graphs.get("int8", graphs["float32"])
        if not runs_here(name):
            log(
                f"{name} is for ARM or for processors with VNNI, which this one does not have, so {graphs['float32']} "
                "is used; export again here for int8"
            )
            name = graphs["float32"]
        return self.folder / FOLDER / name

    @property
    def checksum(self) -> str:
        """Checksum of the graph for this processor."""
        return self.manifest.files[f"{FOLDER}/{self.file.name}"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; it truncates as the model does and does not pad."""
        return Tokenizer.from_file(str(self.folder / TOKENIZER))

    @cached_property
    def graph(self) -> Graph:
        """The graph for this processor, loaded."""
        return Graph(self.file, self.tokenizer, **self.manifest.about["reading"])


class Graph:
    """A graph in ONNX Runtime: from texts, or pairs of texts, to rows of its output.

    Each run has one thread, and several runs go at once: a short text gains nothing from a second thread.

    Args:
        file: The graph; ``qint8`` in its name says that it is quantized.
        tokenizer: It truncates and does not pad.
        output: Name of the output that is read.
        inputs: Names of the inputs.
        padding: Id of the padding token.
        left: Whether texts are padded on the left.
        special: Whether special tokens are added.

    Raises:
        UserError: onnxruntime is not installed, or cannot read the file.
    """

    def __init__(
        self,
        file: Path,
        tokenizer: Tokenizer,
        *,
        output: str,
        inputs: Sequence[str],
        padding: int,
        left: bool,
        special: bool,
    ) -> None:
        self._tokenizer: Any = tokenizer
        self._output, self._inputs, self._padding, self._left, self._special = output, inputs, padding, left, special
        self._session = _session(file)
        self._is_quantized = "qint8" in file.name

    def run(self, texts: Sequence[str] | Sequence[tuple[str, str]], tokens: int) -> np.ndarray:
        """(n, width) float32, for one text or more; a run has up to `tokens` tokens, padding included, or one text."""
        results = np.empty((0, 0), dtype=np.float32)
        with contextlib.ExitStack() as stack:
            pool: ThreadPoolExecutor | None = None
            for start in range(0, len(texts), _CHUNK):
                chunk = self._tokenizer.encode_batch_fast(
                    list(texts[start : start + _CHUNK]), add_special_tokens=self._special
                )
                batches = list(self._batches(chunk, tokens))
                run = functools.partial(self._run, chunk)
                # threads are for several runs: to start one takes a tenth of the time of a short query
                if pool is None and len(batches) > 1:
                    pool = stack.enter_context(ThreadPoolExecutor(_threads()))
                values = map(run, batches) if pool is None else pool.map(run, batches)
                for rows, found in zip(batches, values, strict=True):
                    if not len(results):
                        results = np.empty((len(texts), found.shape[1]), dtype=np.float32)
                    results[start + rows] = found
        return results

    def _batches(self, encodings: Sequence[Encoding], tokens: int) -> Iterator[np.ndarray]:
        """Rows of the texts of each run, longest first.

        An int8 graph scales the numbers of all texts of a run together, so that a text's vector would depend on the
        others: it runs one text at a time. On a CPU, that takes no longer.
        """
        lengths = np.array([len(encoding) for encoding in encodings])
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            size = 1 if self._is_quantized else max(1, tokens // max(1, int(lengths[order[start]])))
            yield order[start : start + size]
            start += size

    def _run(self, encodings: Sequence[Encoding], rows: np.ndarray) -> np.ndarray:
        width = max(1, *(len(encodings[row]) for row in rows))
        ids = np.full((len(rows), width), self._padding, dtype=np.int64)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        for place, row in enumerate(rows):
            encoding = encodings[row]
            own = slice(width - len(encoding), None) if self._left else slice(len(encoding))
            ids[place, own], segments[place, own], mask[place, own] = encoding.ids, encoding.type_ids, 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
        found: np.ndarray = self._session.run([self._output], {name: arrays[name] for name in self._inputs})[0]
        return found


def is_installed() -> bool:
    """Whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def instructions() -> str:
    """What this processor multiplies int8 numbers with, as sentence-transformers names it in names of files.

    ``arm64``; ``avx512_vnni``, for any x86 processor with VNNI; or ``avx2``, for all others.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return _ARM
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    return _VNNI if "avx512_vnni" in flags or "avx_vnni" in flags else _PLAIN


def runs_here(name: str) -> bool:
    """Whether a graph, or instructions, have 8-bit weights whose sums do not overflow on this processor.

    Those for ARM and for VNNI overflow on x86 processors without VNNI; those for ``avx2`` have 7 bits.
    """
    return instructions() != _PLAIN or not any(other in name for other in (_VNNI, _ARM))


def _session(file: Path) -> Any:
    if not is_installed():
        raise UserError(f"{file} {MISSING.format(packages='onnxruntime')}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: it warns of what it optimizes
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each of its errors has a class of its own
        raise UserError(f"onnxruntime cannot read {file} ({first_line(error)}); {_ADVICE}.") from error


def _threads() -> int:
    """Runs at once: the threads that torch has if it is loaded, or would have."""
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
