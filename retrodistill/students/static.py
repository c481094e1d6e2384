"""Static students: a token table and a mean, thousands of queries a second on one core."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve
from scipy.sparse import csr_array
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import NFKC, BertNormalizer
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer, Metaspace
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer

from retrodistill.core.cache import cache_folder, cached_array
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, unknown
from retrodistill.core.runtime import bar
from retrodistill.data.conversations import with_rewrites
from retrodistill.data.parallel import Parallel
from retrodistill.data.texts import Texts, spread
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.contract import TextModel
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import device
from retrodistill.encoders.modules import fast_tokenizer_of
from retrodistill.students.dense import KIND as DENSE_KIND
from retrodistill.students.registry import StageDefaults

INITIALIZATIONS = {
    "teacher": "each token encoded by the teacher on its own, times its inverse document frequency in the corpus",
    "teacher-flat": "each token encoded by the teacher on its own",
    "words": "the teacher's input word embeddings, times the inverse document frequency (only at the same width)",
    "fitted": "rows whose mean comes closest to the documents' vectors, in closed form; no text is encoded for it",
    "random": "normal noise (a control)",
}
TRAINED = "trained"  # in the place of a tokenizer's name
_UNKNOWN, _MARK = "[UNK]", "▁"
_TOKENS_AT_ONCE = 256
_UNSEEN = 1e-3  # of the mean vector, for the row of a token that no document has
_FITTED, _TRIED = 8192, 2048  # documents that are fitted to, and that penalties are tried on: work grows as their cube
_COUNTED = 50_000  # documents that words are counted in
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # times the mean of the kernel's diagonal


def static_student(
    teacher: Encoder,
    corpus: Texts,
    *,
    initialize: str = "teacher",
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    words: int = 0,
    parallel: Parallel | None = None,
) -> SentenceTransformer:
    """A static encoder of the teacher's width and similarity: `StaticEmbedding` over its tokenizer, then `Normalize`.

    Token rows come from the teacher as in model2vec; they are weighted by smoothed inverse document frequencies of
    the corpus, in 0..1, so that the mean favors distinctive words from the start (the role of SIF weights in Arora et
    al. 2017).

    Args:
        teacher: A transformer encoder with a fast tokenizer, or a file of vectors.
        corpus: Texts that document frequencies are counted on.
        initialize: One of `INITIALIZATIONS`.
        seed: Of ``random`` and ``fitted``.
        tokenizer: Another tokenizer than the teacher's, with ``fitted`` or ``random``.
        words: Most words of the corpus that get a row of their own, see `with_words`.
        parallel: Texts that ``fitted`` is fitted to beside the corpus, translations by the vectors of their sources.
    """
    if initialize not in INITIALIZATIONS:
        raise unknown("initialization", initialize, INITIALIZATIONS)
    if teacher.is_static:
        raise UserError(
            f"model {teacher.name} is a token table itself; a static student starts from a transformer: name a "
            "'dense:NAME' as the space."
        )
    if not teacher.has_weights and (tokenizer is None or initialize not in ("fitted", "random")):
        raise UserError(
            f"{teacher.name} has vectors and no model: a static student in its space needs another model's tokenizer "
            "and initialize: fitted."
        )
    if tokenizer is not None and initialize not in ("fitted", "random"):
        raise UserError(
            f"initialize: {initialize} makes rows for the tokens of {teacher.name}; set initialize: fitted for another "
            "tokenizer, or leave tokenizer out."
        )
    pieces = fast_tokenizer(teacher) if tokenizer is None else tokenizer
    tokens = with_words(pieces, corpus, words) if words else pieces
    if initialize == "random":
        rows = np.random.default_rng(seed).standard_normal((tokens.get_vocab_size(), teacher.dimension))
    elif initialize == "fitted":
        texts, vectors = _fitted_to(teacher, corpus, parallel, seed)
        rows = fitted_rows(tokens, texts, vectors, inverse_document_frequencies(tokens, texts), seed)
    else:
        rows = _word_embeddings(teacher) if initialize == "words" else _token_embeddings(teacher, pieces)
        split = [pieces.model.tokenize(tokens.id_to_token(row)) for row in range(len(rows), tokens.get_vocab_size())]
        ids = [[piece.id for piece in of_word] for of_word in split]
        if initialize == "words":
            rows = np.concatenate([rows, *(rows[of_word].mean(axis=0, keepdims=True) for of_word in ids)])
        elif ids:
            rows = np.concatenate([rows, _encode_tokens(teacher, ids)])
    if initialize in ("teacher", "words"):
        rows = rows * inverse_document_frequencies(tokens, corpus)[:, None]
    table = StaticEmbedding(tokens, embedding_weights=torch.from_numpy(rows.astype(np.float32)))
    similarity: Any = teacher.similarity
    modules: list[torch.nn.Module] = [table] + ([Normalize()] if similarity == "cosine" else [])
    return SentenceTransformer(modules=modules, device=device(), similarity_fn_name=similarity)


def _fitted_to(teacher: Encoder, corpus: Texts, parallel: Parallel | None, seed: int) -> tuple[Texts, np.ndarray]:
    """Documents and parallel texts with their (n, d) vectors; a translation has its source's."""
    vectors = embed(teacher, corpus.column, "document")
    if parallel is None:
        return corpus, vectors
    some = np.sort(np.random.default_rng(seed).permutation(len(corpus))[:_FITTED])
    of_sources = embed(teacher, with_rewrites(parallel.texts, parallel.sources).texts, "query")
    documents = corpus.select([corpus.ids[row] for row in some])
    return documents + parallel.texts, np.concatenate([vectors[some], of_sources])


def fast_tokenizer(encoder: TextModel, wanted_by: str = "which a static student shares") -> Tokenizer:
    """A copy of an encoder's tokenizer, without padding and truncation, which would cut long queries silently."""
    backend = fast_tokenizer_of(encoder.modules("document")[0])
    if backend is None:
        raise UserError(f"model {encoder.name} has no fast tokenizer, {wanted_by}; choose another.")
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def trained_tokenizer(corpus: Texts, parallel: Parallel | None = None, size: int = 30_000) -> Tokenizer:
    """A WordPiece tokenizer of about `size` tokens, trained on at most 50,000 documents and on parallel texts.

    Lower-case, with accents and the vowel signs of any script; pieces that occur once are left out. The pieces are
    those of byte-pair encoding with a mark before words: training of WordPiece itself breaks ties at random.
    """
    normalizer = Normalizers([NFKC(), BertNormalizer(strip_accents=False, lowercase=True)])
    merged = Tokenizer(BPE())
    merged.normalizer, merged.pre_tokenizer = normalizer, PreTokenizers([BertPreTokenizer(), Metaspace(_MARK)])
    texts = chain(spread(corpus.column, _COUNTED), () if parallel is None else parallel.texts.column)
    merged.train_from_iterator(texts, BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False))
    pieces = sorted(merged.get_vocab(), key=merged.get_vocab().__getitem__)
    letters = [piece for piece in pieces if len(piece) == 1 and piece != _MARK]
    named = [piece.removeprefix(_MARK) if piece.startswith(_MARK) else f"##{piece}" for piece in pieces]
    vocabulary = dict.fromkeys(piece for piece in (_UNKNOWN, *letters, *named) if piece)
    model = WordPiece({piece: row for row, piece in enumerate(vocabulary)}, unk_token=_UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, BertPreTokenizer()
    return tokenizer


def with_words(tokenizer: Tokenizer, corpus: Texts, most: int) -> Tokenizer:
    """A WordPiece tokenizer with tokens for whole words of the corpus that it splits into pieces or does not know.

    A mean of rows says little about a name or a number that is in pieces, since other words share these. The words that
    most documents have get a token, at most ``most`` of them; those of a single document do not. Words are counted in
    at most 50,000 documents, evenly drawn. Another kind of tokenizer is a `UserError`.
    """
    written = json.loads(tokenizer.to_str())
    if written["model"]["type"] != "WordPiece":
        raise UserError(
            f"words: {most} is for models with a WordPiece tokenizer, as BERT has; this one's is "
            f"{written['model']['type']}. Leave words out."
        )
    counts: Counter[str] = Counter()
    for text in spread(corpus.column, _COUNTED):
        normal = tokenizer.normalizer.normalize_str(text)
        counts.update({word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)})
    vocabulary = written["model"]["vocab"]
    for word, documents in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if documents < 2 or most == 0:
            break
        if [piece.value for piece in tokenizer.model.tokenize(word)] != [word]:
            vocabulary[word] = len(vocabulary)
            most -= 1
    return Tokenizer.from_str(json.dumps(written))


def inverse_document_frequencies(tokenizer: Tokenizer, corpus: Texts, block: int = 1000) -> np.ndarray:
    """(vocabulary,) float64 of log(1 + n / (df + 1/2)) / log(1 + 2n), in 0..1; 1 for tokens that never occur."""
    frequency = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for start in range(0, len(corpus), block):
        for encoding in tokenizer.encode_batch(corpus.slice(start, start + block), add_special_tokens=False):
            frequency[np.unique(np.asarray(encoding.ids, dtype=np.int64))] += 1  # a document may be empty
    return np.log1p(len(corpus) / (frequency + 0.5)) / np.log1p(2 * max(len(corpus), 1))


def _token_embeddings(teacher: Encoder, tokenizer: Tokenizer) -> np.ndarray:
    """(vocabulary, d) of each token between the special tokens, through the teacher; kept in the cache."""
    return cached_array(
        _table_file(teacher, tokenizer),
        lambda: _encode_tokens(teacher, [[token] for token in range(tokenizer.get_vocab_size())]),
    )


def _table_file(teacher: Encoder, tokenizer: Tokenizer) -> Path:
    return cache_folder() / "token-tables" / f"{teacher.document_space}-{digest(tokenizer.to_str())}.npy"


def _table_left(settings: Any, data: Any) -> tuple[int, float]:
    """Tokens that a table still needs from the document encoder, and the seconds at the rate of a few of them."""
    if settings.initialize not in ("teacher", "teacher-flat") or not data.space.has_weights:
        return 0, 0.0
    tokens = fast_tokenizer(data.space)
    if _table_file(data.space, tokens).exists():
        return 0, 0.0
    size = tokens.get_vocab_size()
    few = min(size, _TOKENS_AT_ONCE)
    started = time.perf_counter()
    _encode_tokens(data.space, [[token] for token in range(few)])
    return size, (time.perf_counter() - started) * size / few


def _encode_tokens(teacher: Encoder, tokens: Sequence[Sequence[int]]) -> np.ndarray:
    """(n, d) of tokens, or of words of several tokens, each between the special tokens."""
    before, after = _frame(teacher.model.tokenizer)
    rows = np.empty((len(tokens), teacher.dimension), dtype=np.float32)
    teacher.model.eval()
    with bar(len(tokens), "token table", "tokens") as progress, torch.inference_mode():
        for start in range(0, len(tokens), _TOKENS_AT_ONCE):
            ids = [torch.tensor([*before, *own, *after]) for own in tokens[start : start + _TOKENS_AT_ONCE]]
            inputs = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(teacher.model.device)
            lengths = torch.tensor([len(own) for own in ids], device=inputs.device)
            mask = (torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]).long()
            features = {"input_ids": inputs, "attention_mask": mask}
            rows[start : start + len(ids)] = teacher.model(features)["sentence_embedding"].float().cpu().numpy()
            progress.update(len(ids))
    return rows


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before a text and behind it: some decoders have one behind, whose state is their vector."""
    text, framed = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    first = next((at for at in range(len(framed)) if framed[at : at + len(text)] == text), len(framed))
    return framed[:first], framed[first + len(text) :]


def _word_embeddings(teacher: Encoder) -> np.ndarray:
    transformer: Any = teacher.model[0].auto_model
    rows: np.ndarray = transformer.get_input_embeddings().weight.detach().float().cpu().numpy()
    if rows.shape[1] != teacher.dimension:
        raise UserError(
            f"model {teacher.name} has word embeddings of {rows.shape[1]} dimensions and vectors of "
            f"{teacher.dimension}; initialize the table from 'teacher'."
        )
    return rows


def fitted_rows(
    tokenizer: Tokenizer, corpus: Texts, vectors: np.ndarray, frequencies: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Token rows whose mean over a document comes closest to the document's vector: LEAF's loss, solved.

    Ridge regression in its dual form, ``X = D A' (A D A' + penalty I)^-1 V``, where A has a document's share of each
    token and D the squared weights: a rare token may move further from zero than a common one. The penalty is the one
    whose leave-one-out predictions ``v - (v - v^) / (1 - h)`` have the highest mean cosine with the vectors. Labels
    and queries are not used. It is fitted to at most 8,192 random documents, and the penalty is chosen on 2,048.
    ``vectors`` are (documents, d) float32 and ``frequencies`` (vocabulary,) inverse document frequencies in 0..1.
    A token that none of these documents has gets a thousandth of their mean vector, which changes no other text: with
    rows of 0, a text of such tokens alone would have no direction, and its gradient would overflow.
    """
    places = np.random.default_rng(seed).permutation(len(corpus))[:_FITTED]
    texts = corpus.column
    shares = _shares(tokenizer, [texts[place] for place in places])
    targets = vectors[places].astype(np.float64)
    weighted = shares.multiply(frequencies**2).tocsr()
    kernel = (weighted @ shares.T).toarray()
    scale = max(float(np.trace(kernel)) / len(kernel), 1e-12)
    values, directions = np.linalg.eigh(kernel[:_TRIED, :_TRIED])
    turned = directions.T @ targets[:_TRIED]
    best = max(_PENALTIES, key=lambda penalty: _left_out(values, directions, turned, targets[:_TRIED], penalty * scale))
    kernel[np.diag_indices_from(kernel)] += best * scale
    rows = np.asarray(weighted.T @ solve(kernel, targets, assume_a="pos", overwrite_a=True), dtype=np.float32)
    rows[shares.sum(axis=0) == 0] = _UNSEEN * targets.mean(axis=0)
    return rows


def _left_out(
    values: np.ndarray, directions: np.ndarray, turned: np.ndarray, targets: np.ndarray, penalty: float
) -> float:
    """Mean cosine of each document's vector with its prediction by the others."""
    kept = values / (values + penalty)
    fitted, leverage = directions @ (kept[:, None] * turned), directions**2 @ kept
    predicted = targets - (targets - fitted) / (1 - leverage)[:, None]
    lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(targets, axis=1)
    return float(np.mean(np.sum(predicted * targets, axis=1) / np.where(lengths > 0, lengths, 1.0)))


def _shares(tokenizer: Tokenizer, texts: list[str]) -> csr_array:
    """(texts, vocabulary): the share of a text's tokens that each token is; times rows it gives their mean."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return token_matrix(ids, [1 / max(len(tokens), 1) for tokens in ids], tokenizer.get_vocab_size())


def token_matrix(ids: Sequence[Sequence[int]], weights: Sequence[float] | np.ndarray, vocabulary: int) -> csr_array:
    """(texts, vocabulary) sparse float64 of texts' tokens, to each of which its text gives a weight."""
    lengths = [len(tokens) for tokens in ids]
    joined = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=sum(lengths))
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    matrix = csr_array((np.repeat(np.asarray(weights), lengths), joined, bounds), shape=(len(ids), vocabulary))
    matrix.sum_duplicates()
    return matrix


def _start(settings: Any, data: Any) -> SentenceTransformer:
    documents, tokenizer = data.collection.documents, None
    if settings.tokenizer == TRAINED:
        tokenizer = trained_tokenizer(documents, data.parallel)
    elif settings.tokenizer:
        tokenizer = fast_tokenizer(load_encoder(settings.tokenizer, DENSE))
    options = {"initialize": settings.initialize, "words": settings.words, "parallel": data.parallel}
    return static_student(data.space, documents, seed=data.seed, tokenizer=tokenizer, **options)


def _check(settings: Any) -> None:
    if any(stage.lora is not None for stage in settings.stages):
        raise ValueError("lora adapts a transformer, and a static student has none; remove lora from its stages")


KIND = replace(
    DENSE_KIND,
    name="static",
    written="static",
    start=_start,
    transformer=None,
    start_left=_table_left,
    load=lambda folder: load_encoder(f"static:{folder}"),
    owns=lambda model: type(model[0]).__name__ == "StaticEmbedding",
    defaults=lambda _: StageDefaults("query_encoder", {"epochs": 12, "learning_rate": 1e-3, "batch_size": 64}),
    options=frozenset({"initialize", "tokenizer", "dimension", "words", "trim"}),
    check=_check,
)
