"""Sparse students: SPLADE heads on any transformer, and queries that need no model."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling

from retrodistill.core.errors import UserError
from retrodistill.data.pseudo_queries import sample_sentences, title_texts
from retrodistill.data.texts import Texts, spread
from retrodistill.encoders.any_encoder import SPARSE, load_encoder
from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.layers import longest_text
from retrodistill.encoders.loading import load_bi_encoder, load_sparse
from retrodistill.encoders.modules import keep_first_layers, with_modules
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.rankers.bi_encoder import SparseRanker
from retrodistill.students.lexical_terms import LexicalTerms, token_ids
from retrodistill.students.pruning import pruned
from retrodistill.students.registry import WHOLE_TRANSFORMER, Kind, StageDefaults
from retrodistill.students.sparse_queries import train_query_encoder, with_query_encoder
from retrodistill.students.sparse_training import (
    SparsityAlarm,
    check_head,
    exhaustive,
    store_documents,
    train_head_or_both,
)
from retrodistill.students.static import fast_tokenizer, inverse_document_frequencies
from retrodistill.students.stored_states import head_of, stored_states
from retrodistill.students.vdr import with_query_weights, with_vdr_head
from retrodistill.training.stages import StageRun
from retrodistill.training.trainer import History

Activation: TypeAlias = Literal["relu", "log1p_relu"]

_AT_MOST = 20000  # documents whose hidden states a head starts from
# Logit of a text's own token at the start, by activation: log(1 + logit), or log(1 + log(1 + logit)), is 1.
_OWN = {"relu": float(np.e - 1), "log1p_relu": float(np.expm1(np.e - 1))}
_ZERO_AT = 0.7  # where a token's logit is zero at the start, as a share of what its mean state gives
_DEVIATIONS = 4.5  # for a token that no document has, its zero's least distance from the mean: none has it by chance
_RIDGE = 1e-3  # of the mean variance, on the covariance within terms
_NEVER = -1.0  # bias of terms that no text may have
_SHARED = 0.5  # strength at the start of a head that has lexical terms next to it
_MEASURED = 128  # texts that sparsity is measured on


def sparse_student(
    source: str,
    corpus: Texts,
    *,
    queries: Literal["model", "inference-free", "separate-model"] = "model",
    head: Literal["splade", "vdr"] = "splade",
    lexical_terms: bool = False,
    layers: int | None = None,
    max_length: int | None = None,
    activation: Activation | None = None,
) -> SparseEncoder:
    """A sparse encoder to start from: log(1 + relu(logit)), maximum over tokens (SPLADE, arXiv 2109.10086).

    A sparse encoder or masked language model starts as it is; a bi-encoder's transformer gets the linear head of
    `lexical_start`. All modules but VDR's head and lexical terms are stock modules, so it loads without this package.

    Args:
        source: Folder or hub name of a sparse encoder, a masked language model or a bi-encoder.
        corpus: Documents that heads and query weights start from.
        queries: ``model``: queries are encoded as documents are. ``inference-free``: each token of a query has one
            weight, at first its inverse document frequency (arXiv 2411.04403), and no model runs. ``separate-model``:
            queries have a copy of the documents' encoder, see `with_query_encoder`; an inference-free encoder keeps its
            documents, and its token weights are the copy's factors.
        head: ``splade``, or ``vdr``, see `VocabularyPooling`.
        lexical_terms: Documents also weight their own tokens, see `LexicalTerms`; for queries that are not encoded as
            documents are.
        layers: Number of transformer layers to keep, from the first.
        max_length: Maximum number of tokens of a text; the model's own by default.
        activation: ``log1p_relu`` takes the logarithm twice (OpenSearch's doc-v3, arXiv 2504.14839), ``relu`` once; a
            sparse encoder's own by default, and ``relu`` for others.
    """
    base = _base(source, corpus, layers, max_length, activation)
    encoder = SparseTextEncoder(base, f"sparse:{source}")
    if queries == "model" or any(hasattr(module, "sub_modules") for module in base):
        free = encoder.token_weights("query")
        if queries == "model" and free is not None:
            raise UserError(f"model {source} has inference-free queries; set the student's queries to that.")
        if lexical_terms:
            raise UserError(
                "lexical terms are for new students whose queries have no model or a separate one; set "
                "lexical_terms: false."
            )
        if queries == "inference-free" and free is None:
            raise UserError(f"model {source} encodes queries with a model of their own; set queries: separate-model.")
        if queries == "separate-model" and free is not None:
            return with_query_encoder(base, encoder.modules("document"), free.weights)
        return with_vdr_head(base) if head == "vdr" else base
    weights = _inverse_frequencies(encoder, corpus)
    documents: list[Any] = list(base.children())
    if lexical_terms:
        average = token_ids(encoder, spread(corpus.column, _AT_MOST))[1].mean()
        terms = LexicalTerms(encoder.dimension, average, base.tokenizer.all_special_ids)
        for parameter in head_of(encoder).linear.parameters():  # the head finds the text's own tokens, too
            parameter.data.mul_(_SHARED)
        documents.append(terms.to(base.device))
    if queries == "separate-model":
        return with_query_encoder(base, documents, weights)
    student: SparseEncoder = with_query_weights(base, torch.from_numpy(weights), documents)
    return student


def _base(
    source: str, corpus: Texts, layers: int | None, max_length: int | None, activation: Activation | None
) -> SparseEncoder:
    try:
        base = load_sparse(source)
    except UserError:
        bi_encoder = load_bi_encoder(source)  # raises a clear error if it is neither
    else:
        _cut(base, source, layers, max_length)
        if activation is not None:
            _splade_pooling(base, source).activation_function = activation
        return base
    transformer = bi_encoder[0]
    if not isinstance(transformer, Transformer):
        raise UserError(
            f"model {source} is {type(transformer).__name__} and has no contextual tokens; a sparse student starts "
            "from a transformer."
        )
    fast_tokenizer(Encoder(bi_encoder, f"dense:{source}"))  # refuses a model without one before the work starts
    _cut(bi_encoder, source, layers, max_length)
    width, size = int(transformer.get_embedding_dimension()), len(transformer.tokenizer)
    head = Dense(width, size, activation_function=None, module_input_name="token_embeddings").to(bi_encoder.device)
    unit = Normalize(module_input_name="token_embeddings")  # one scale for the heads of all transformers
    pooling = SpladePooling("max", activation or "relu", embedding_dimension=size)
    model: SparseEncoder = with_modules(bi_encoder, [transformer, unit, head, pooling], "SparseEncoder", "dot")
    vectors, biases = lexical_start(SparseTextEncoder(model, f"sparse:{source}"), corpus)
    head.linear.weight.data.copy_(torch.from_numpy(vectors))
    head.linear.bias.data.copy_(torch.from_numpy(biases))
    return model


def _splade_pooling(model: Any, source: str) -> SpladePooling:
    for module in model.modules():  # of a router's routes, too
        if isinstance(module, SpladePooling):
            return module
    raise UserError(f"model {source} has no SPLADE pooling, which an activation is for; leave activation out.")


def _cut(model: Any, source: str, layers: int | None, max_length: int | None) -> None:
    if layers is not None:
        keep_first_layers(model, layers)
    if max_length is not None:
        transformer = getattr(model[0], "auto_model", None)
        longest = None if transformer is None else longest_text(transformer)
        if longest is None or max_length > longest:
            most = longest or "its own number of"
            raise UserError(f"max_length={max_length}: model {source} reads 1 to {most} tokens.")
        model[0].max_seq_length = max_length


def lexical_start(student: SparseTextEncoder, corpus: Texts) -> tuple[np.ndarray, np.ndarray]:
    """A term head that finds each token in its hidden state: (vocabulary, d) vectors and (vocabulary,) biases, float32.

    With m_v the mean hidden state of token v and S the covariance of states within tokens, Fisher's discriminant is
    ``d_v = S^-1 m_v``. Its bias puts the zero at .7 of what m_v gives, and its scale gives m_v the logit e - 1, which
    becomes weight 1 (with a double logarithm, e^(e - 1) - 1). Tokens that the documents do not have take their mean
    state from their input embedding, by the linear map that fits those of the others best; their zero is at least 4.5
    standard deviations above the mean over all states. Special tokens never get weight. At most 20,000 documents are
    used, and not the student's own head.
    """
    transformer, *_, pooling = student.modules("document")
    tokenizer = transformer.tokenizer
    texts = spread(corpus.column, _AT_MOST)
    states = stored_states(student, texts, "document")
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    width = states.vectors.shape[1]
    means, moments = np.zeros((len(tokenizer), width)), np.zeros((width, width))
    for rows in states.blocks():
        ids = token_ids(student, texts[rows[0] : rows[-1] + 1])[0]
        block = states.gather(rows)[0].numpy()
        moments += block.T @ block
        order = np.argsort(ids, kind="stable")
        present, first = np.unique(ids[order], return_index=True)
        means[present] += np.add.reduceat(block[order], first, axis=0)
        counts += np.bincount(ids, minlength=len(counts))
    seen = counts > 0
    means[seen] /= counts[seen, None]
    within = (moments - (means[seen] * counts[seen, None]).T @ means[seen]) / counts.sum()
    within += np.eye(len(within)) * max(_RIDGE * np.trace(within) / len(within), 1e-9)
    means[~seen] = _from_embeddings(transformer, means, counts)[~seen]
    vectors = np.linalg.solve(within, means.T).T
    strengths = (vectors * means).sum(axis=1)  # what a token's mean state gives
    mean = (means * counts[:, None]).sum(axis=0) / counts.sum()
    scatter = moments / counts.sum() - np.outer(mean, mean)
    chance = vectors @ mean + _DEVIATIONS * np.sqrt(np.maximum(((vectors @ scatter) * vectors).sum(axis=1), 0))
    zeros = np.where(seen, _ZERO_AT * strengths, np.maximum(_ZERO_AT * strengths, chance))
    floor = np.quantile(strengths[seen], 0.02)  # without a floor, words with weak states would be scaled up to noise
    own = _OWN[pooling.activation_function]
    scales = own / np.maximum(np.maximum(strengths - zeros, (1 - _ZERO_AT) / 2 * strengths), max(floor / 10, 1e-9))
    vectors, biases = vectors * scales[:, None], -zeros * scales
    never = tokenizer.all_special_ids
    vectors[never], biases[never] = 0.0, _NEVER
    return vectors.astype(np.float32), biases.astype(np.float32)


def _from_embeddings(transformer: Any, means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(vocabulary, d) mean hidden states as a linear map of the input embeddings gives them (ridge regression)."""
    embeddings = transformer.auto_model.get_input_embeddings().weight.detach().float().cpu().numpy()
    inputs = np.zeros((len(counts), embeddings.shape[1] + 1))
    rows = min(len(counts), len(embeddings))
    inputs[:rows, :-1], inputs[:, -1] = embeddings[:rows], 1.0
    roots = np.sqrt(np.minimum(counts, 100))[:, None]  # without the limit, frequent words would decide alone
    weighted = inputs * roots
    gram = weighted.T @ weighted
    gram += np.eye(len(gram)) * max(1e-3 * np.trace(gram) / len(gram), 1e-9)
    fitted = np.linalg.solve(gram, weighted.T @ (means * roots))
    return inputs @ fitted


def _inverse_frequencies(encoder: SparseTextEncoder, corpus: Texts) -> np.ndarray:
    """(vocabulary,) float32 inverse document frequencies in 0..1; 0 for special tokens."""
    tokens = fast_tokenizer(encoder, "which inference-free queries need")
    tokenizer, weights = encoder.model.tokenizer, inverse_document_frequencies(tokens, corpus)
    weights = np.pad(weights, (0, max(0, len(tokenizer) - len(weights))), constant_values=1.0)
    weights[tokenizer.all_special_ids] = 0.0
    return weights.astype(np.float32)


def sparsity(student: SparseTextEncoder, documents: Texts, queries: Texts) -> dict[str, float]:
    """Mean ``terms`` and ``query_terms`` per text and ``flops``, on at most 128 texts of each side.

    FLOPS are ``sum_j p_j(query) p_j(document)`` with p_j the share of texts that have term j (arXiv 2004.05665).
    """
    sides: list[tuple[Texts, Role]] = [(queries, "query"), (documents, "document")]
    vectors = [student.encode(spread(texts.texts, _MEASURED), role) for texts, role in sides]
    query_shares, document_shares = (np.asarray((side != 0).mean(axis=0)).ravel() for side in vectors)
    query_terms, terms = (float(np.diff(side.indptr).mean()) for side in vectors)
    return {"terms": terms, "query_terms": query_terms, "flops": float(query_shares @ document_shares)}


def _start(settings: Any, data: Any) -> SparseEncoder:
    options = {
        name: getattr(settings, name) for name in ("queries", "lexical_terms", "layers", "max_length", "activation")
    }
    options["head"] = settings.head or "splade"
    model = sparse_student(settings.model.partition(":")[2], data.collection.documents, **options)
    if any(stage.train == "head" for stage in settings.stages):
        check_head(SparseTextEncoder(model, settings.model))
    return pruned(model, settings, data)


def _defaults(settings: Mapping[str, Any]) -> StageDefaults:
    if settings.get("queries") == "inference-free":
        flops = [{"name": "flops", "weight": 0.01}]
        if "lexical_terms" not in settings:
            return StageDefaults("both_encoders", WHOLE_TRANSFORMER, 1.2, flops)
        training = {"epochs": 2, "learning_rate": 4e-3, "batch_size": 32, "warmup": 0.05, "max_gradient_norm": 0}
        return StageDefaults("head", training, 1.2, flops)
    if settings.get("queries") == "separate-model":
        sides = [
            {"name": "flops", "weight": 0.003, "side": "query"},
            {"name": "anti-zero", "weight": 0.001, "side": "query"},
        ]
        return StageDefaults("query_encoder", {"learning_rate": 3e-5, "batch_size": 16}, 1.2, sides)
    if settings.get("head") == "vdr":  # the head limits the number of terms
        return StageDefaults("both_encoders", WHOLE_TRANSFORMER, 1.0)
    flops = [{"name": "flops", "weight": 0.003}, {"name": "flops", "weight": 0.003, "side": "query"}]
    return StageDefaults("both_encoders", WHOLE_TRANSFORMER, 0.3, flops)


def _complete(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Inference-free queries and lexical terms where a bi-encoder gets a head; a sparse encoder has its own."""
    if settings.get("head") == "vdr" or settings.get("queries") == "model":
        return {}
    try:
        model = load_sparse(name)
    except UserError:
        load_bi_encoder(name)  # raises a clear error if it is neither
        return {"queries": "inference-free", "lexical_terms": True}
    free = SparseTextEncoder(model, f"sparse:{name}").is_inference_free
    return {"queries": "inference-free"} if free else {}


def _check(settings: Any) -> None:
    if settings.head not in (None, "splade", "vdr"):
        raise ValueError(f"head: {settings.head} is for re-rankers; a sparse student has head: splade or vdr")
    if settings.lexical_terms and settings.queries == "model":
        raise ValueError("lexical_terms is for sparse students with queries: inference-free or separate-model; set one")
    trained = {stage.train for stage in settings.stages}
    if settings.head == "vdr":
        _check_vdr(settings, trained)
    if "query_encoder" in trained and settings.queries != "separate-model":
        raise ValueError(
            "train: query_encoder, the default, trains queries of a sparse student while its documents stay as they "
            "are; set queries: separate-model, or train: head or both_encoders"
        )
    if settings.queries == "separate-model":
        _check_separate(settings, trained)


def _check_vdr(settings: Any, trained: Set[str]) -> None:
    if settings.queries != "model":
        raise ValueError("head: vdr encodes queries as it does documents; leave queries out")
    if settings.activation is not None:
        raise ValueError("head: vdr has its own activation; leave activation out")
    if "head" in trained:
        raise ValueError("train: head trains the term weights of SPLADE; with head: vdr, set train: both_encoders")


def _check_separate(settings: Any, trained: Set[str]) -> None:
    if settings.keep is not None:
        raise ValueError("keep cuts a student's one transformer, and queries: separate-model has two; remove keep")
    if "head" in trained:
        raise ValueError(
            "train: head trains the head of the documents and queries: separate-model has two; train documents with "
            "queries: inference-free, and start from that student: model: sparse:FOLDER"
        )
    for stage in settings.stages:
        if stage.train == "query_encoder" and any(each.side == "document" for each in stage.regularizers):
            raise ValueError("train: query_encoder leaves documents as they are; set the regularizers' side: query")


def _describe(student: SparseTextEncoder, data: Any) -> tuple[dict[str, Any], list[str]]:
    """Terms per text and FLOPS, and an alarm where the student is empty or dense."""
    corpus, alarm = data.collection, SparsityAlarm()
    queries = data.queries or title_texts(corpus) or sample_sentences(corpus, 1, data.seed) or corpus.documents
    measured = sparsity(student, corpus.documents, queries)
    alarm([round(measured["terms"])], student.dimension, final=True)
    return {"sparsity": measured}, alarm.notes


def _train(run: StageRun) -> History:
    return train_query_encoder(run) if run.stage.train == "query_encoder" else train_head_or_both(run)


KIND = Kind(
    "sparse",
    library_class="SparseEncoder",
    written="sparse:NAME",
    start=_start,
    load=lambda folder: load_encoder(f"sparse:{folder}", SPARSE),
    wrap=SparseTextEncoder,
    train=_train,
    ranker=lambda student, documents: SparseRanker(student),
    store_documents=store_documents,
    exhaustive=exhaustive,
    describe=_describe,
    parts=("head", "both_encoders", "query_encoder"),
    defaults=_defaults,
    options=frozenset({"queries", "head", "lexical_terms", "activation", "keep", "trim"}),
    complete=_complete,
    check=_check,
    index="inverted",
    has_terms=True,
)
