"""Memory and disk that the steps of a recipe need, from shapes: texts, vectors, matrices of a batch, optimizer state.

Estimates of peaks, in bytes, on top of the process with its models. They assume float32 and AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow.compute as pc
import torch

from retrodistill.core.faiss import CODED
from retrodistill.data.texts import Texts, spread
from retrodistill.encoders.vectors import training_rows
from retrodistill.quantizers.codes import Form
from retrodistill.quantizers.learning import KEPT
from retrodistill.quantizers.settings import MOST_HELD, QuantizerSettings
from retrodistill.rankers.analyzers import Analyzer
from retrodistill.training.settings import StageSettings

FLOAT = 4
_STRING = 64  # bytes of a Python string besides its characters, with the reference to it
CHARACTERS = 4  # per token of English text, about
QUERY_TOKENS = 48  # of a query that is long for its batch
_PAIR = 64  # bytes of a candidate in memory while lists are made: columns of a run, their order, the padded list
_STORED_PAIR = 12  # bytes of a candidate in a compressed Parquet file
_RUN_LINE = 36  # bytes of a line of a run besides the two ids: rank, score, and name
_COPIES = 8  # of a batch's matrix: scores, targets, masks, and what their gradient needs
_SPARSE = 200 * 8  # bytes of a text's heaviest terms, about
_COUNTED = 100  # documents whose terms are counted
_POSTING = 12  # bytes of a term of a document: score, document, and their copy in another order
_LIST_NUMBER = 8  # bytes of the number of a document's list, and of its row in an index with lists
_RANKED = 128  # held-out queries that rank documents at once
_START_COPIES = 4  # of the vectors that OPQ trains on: as given, rotated, decoded, and their products
_BIT_COPIES = 6  # of those that bits are fitted to: as given, signs, errors, their products, and two of these
_STEP_COPIES = 4  # of the reconstructed documents of a step, with their gradients
_LAYER_VALUES = 20  # float32 values per token, layer, and width that a backward pass keeps; the feed-forward's with it


@dataclass(frozen=True)
class Shape:
    """What decides the memory of a model's forward pass."""

    layers: int
    width: int
    heads: int
    longest: int  # tokens

    @classmethod
    def of(cls, model: Any) -> Shape | None:
        """Of a sentence-transformers model; None if no transformer is in it."""
        transformers = [module.auto_model for module in model.modules() if hasattr(module, "auto_model")]
        config: Any = transformers[0].config if transformers else getattr(model, "config", None)
        if not hasattr(config, "num_hidden_layers"):
            return None
        longest = int(getattr(model, "max_seq_length", None) or 512)
        return cls(config.num_hidden_layers, config.hidden_size, config.num_attention_heads, longest)

    def batch(self, texts: int, tokens: float, *, is_trained: bool) -> float:
        """Bytes of activations of a batch of texts; `tokens` is the length of its longest text."""
        length = min(self.longest, 2 + tokens)
        values = texts * length * self.width * _LAYER_VALUES + texts * self.heads * length**2 * 2
        return FLOAT * values * (self.layers if is_trained else 1)


def is_in_memory(device: Any) -> bool:
    """Whether tensors of a torch device are in the machine's memory: not those of a GPU with a memory of its own."""
    return torch.device(device).type != "cuda"


class Parameters(NamedTuple):
    """Numbers of a student's parameters."""

    all: int
    trained: int


def parameters(model: Any, *, whole: bool) -> Parameters:
    """Of a student; unless the `whole` of it is trained, its transformer is frozen."""
    count = sum(parameter.numel() for parameter in model.parameters())
    transformers = [module.auto_model for module in model.modules() if hasattr(module, "auto_model")]
    frozen = 0 if whole else sum(parameter.numel() for each in transformers for parameter in each.parameters())
    return Parameters(count, count - frozen)


def strings(texts: Texts) -> float:
    """Bytes of texts as Python strings."""
    return len(texts) * _STRING + characters(texts) * len(texts)


def characters(texts: Texts, column: str = "text") -> float:
    """Mean bytes of a text, or of its id, 0 without any."""
    lengths = texts.lengths if column == "text" else pc.binary_length(texts.table[column]).to_numpy()
    return float(lengths.mean()) if len(lengths) else 0.0


def longest_in_batch(texts: Texts) -> float:
    """Tokens of a text that is long for its collection: batches are padded to their longest."""
    return 2.5 * characters(texts) / CHARACTERS


def stored_vectors(encoder: Any, texts: int, tokens: float) -> float:
    """Bytes of stored vectors of texts, by the kind of encoder."""
    per_text = {"multi-vector": 2 * tokens * encoder.dimension, "sparse": _SPARSE}
    number = 2 if encoder.encoding.store_precision == "float16" else FLOAT
    return texts * per_text.get(encoder.kind, number * encoder.dimension)


def candidates(stage: StageSettings, sources: int, documents: int) -> int:
    """Most candidates of a text, without those that a batch shares; 0 where the whole corpus is the list."""
    settings = stage.candidates
    if not stage.needs_lists or settings.depth == "all":
        return 0
    return min(documents, int(settings.depth) * sources + settings.random)


def stored_pairs(pairs: int) -> float:
    """Bytes of scored pairs on disk."""
    return _STORED_PAIR * pairs


def lists(pairs: int) -> float:
    """Bytes of candidates while they are found, scored, and made lists."""
    return _PAIR * pairs


def postings(documents: Texts, analyze: Analyzer) -> float:
    """Bytes of BM25's postings of a corpus, by the distinct terms of some documents."""
    terms = analyze(spread(documents.column, _COUNTED)).ids
    return len(documents) * sum(len(set(of_text)) for of_text in terms) / len(terms) * _POSTING


def run_rows(rows: int) -> float:
    """Bytes of rankings in memory."""
    return 24 * rows


def stored_run(rows: int, *ids: Texts) -> float:
    """Bytes of rankings as run files; a line has an id of each of the given texts."""
    return rows * (_RUN_LINE + sum(characters(texts, "id") for texts in ids))


def matrices(batch: int, width: int, vector: int) -> float:
    """Bytes of a batch's scores of lists of some width, and of the vectors of their documents."""
    return FLOAT * batch * width * (_COPIES + vector)


def learned_index(form: Form, documents: Texts, dimension: int) -> float:
    """Bytes on disk of an index with a product quantizer: codes, ids, codewords, rotation, centroids, and vectors."""
    per_document = form.subspaces * form.bits / 8 + _LIST_NUMBER * bool(form.lists) + characters(documents, "id")
    per_document += refining(form) * dimension
    words = 256 if form.bits == 1 else 2**form.bits  # bits are stored as bytes of eight dimensions
    shared = form.width * (words + form.lists + dimension * form.rotated)
    return len(documents) * per_document + FLOAT * shared


def refining(form: Form) -> int:
    """Bytes per dimension of the vectors that a refinement stores."""
    return {"Flat": FLOAT, "SQfp16": 2, "SQ8": 1, None: 0}[form.refinement]


def learning(form: Form, documents: int, texts: int, dimension: int, settings: QuantizerSettings) -> float:
    """Bytes of learning a product quantizer of a number of documents from a number of texts."""
    held, trained = min(documents, MOST_HELD), len(training_rows(documents, max(form.lists, 2**form.bits)))
    kept = FLOAT * dimension * (held + texts) + documents * (form.subspaces + _LIST_NUMBER * bool(form.lists))
    kept += 2 * documents * dimension * refining(form)
    copies = _BIT_COPIES if form.bits == 1 else _START_COPIES
    start = FLOAT * (copies * dimension * trained + min(CODED, trained) * form.subspaces * 2**form.bits)
    listed = held if documents <= settings.whole else settings.batch_size * settings.depth + settings.sampled
    step = matrices(settings.batch_size, listed, 0) + FLOAT * _STEP_COPIES * form.width * listed
    evaluation = FLOAT * held * (form.width + 2 * _RANKED)
    products = FLOAT * texts * documents
    return kept + max(start, max(step, evaluation) + (products if texts * documents <= KEPT else 0))


def optimizer(trained: int) -> float:
    """Bytes of gradients and of AdamW's two moments, for a number of trained parameters."""
    return 3 * FLOAT * trained


def checkpoints(parameters: int, trained: int) -> float:
    """Bytes on disk while a stage trains: two checkpoints with moments, and a third while it is written."""
    return 3 * FLOAT * (parameters + 2 * trained)
