"""Trim a model to the vocabulary of some texts: fewer rows in its token table, and the same vectors for these texts.

After Load What You Need (Abdaoui et al., arXiv 2010.05609). What is kept is decided in `encoders.vocabulary`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.layers import first_position
from retrodistill.encoders.modules import fast_tokenizer_of
from retrodistill.encoders.vocabulary import count_texts, ids_of, kept_tokens, with_tokens
from retrodistill.students.small_tables import reduce_dimension

_FEW_SHARED = 0.5  # of the tokens of queries that documents have: below, they are likely of another language


@dataclass(frozen=True)
class Trimmed:
    """A trimmed model, and what was kept."""

    model: Any
    tokens: int  # that it has
    before: int  # that it had
    used: int  # of its tokens, those that enough texts have; others are kept for words that no text has
    warning: str | None = None  # a line on texts that do not seem to fit each other

    @property
    def about(self) -> dict[str, Any]:
        """For a manifest."""
        return {"tokens": self.tokens, "before": self.before, "used": self.used}


def trim_model(
    model: Any,
    documents: Sequence[str],
    queries: Sequence[str],
    *,
    min_count: int = 1,
    dimension: float | None = None,
    name: str = "this model",
) -> Trimmed:
    """A copy of a model with the tokens that texts use, and those that any other word needs.

    A text whose tokens are all kept has the vector that it had; another is read in smaller pieces. The terms of a
    sparse model are its tokens: its vectors lose the terms that are not kept.

    Args:
        model: A model of any class of sentence-transformers, with a WordPiece, BPE, or Unigram tokenizer.
        documents: Texts whose tokens are kept. They are read whole, after each of the model's prompts.
        queries: The same. One of both may be empty.
        min_count: Fewest texts that have a token which is kept for them.
        dimension: Of a static model: dimensions of its table, see `reduce_dimension`; None to leave it as it is.
        name: Of the model, in errors.

    Raises:
        UserError: The model has no such tokenizer, modules whose parts for tokens are not known, or no token of a text.
    """
    tokenizer = _tokenizer(model, name)
    prompts = list(dict.fromkeys(["", *filter(None, (getattr(model, "prompts", None) or {}).values())]))
    in_documents, in_queries = (count_texts(tokenizer, texts, prompts) for texts in (documents, queries))
    used = np.flatnonzero(in_documents + in_queries >= min_count)
    if not len(used):
        raise UserError(f"no token of {name} is in {min_count} of the texts; give other texts, or a smaller minimum.")
    transformers = [module.auto_model for module in model.modules() if hasattr(module, "auto_model")]
    # Positions are numbered from behind the id of padding, which must stay as it is.
    fixed = range(max(map(first_position, transformers), default=0))
    named = [token for module in model.modules() for token in _named_tokens(module)]
    kept = kept_tokens(tokenizer, [*used.tolist(), *fixed, *named])
    trimmed = _with_tokens(copy.deepcopy(model), tokenizer, kept, name)
    if dimension is not None:
        trimmed = reduce_dimension(trimmed, dimension, documents, queries, name)
    warning = _warning(in_documents, in_queries)
    return Trimmed(trimmed, len(kept), tokenizer.get_vocab_size(), len(used), warning)


def _warning(documents: np.ndarray, queries: np.ndarray) -> str | None:
    """A line for queries with few tokens of the documents, by (ids,) numbers of texts with each token; or None."""
    if not documents.any() or not queries.any():
        return None
    shared = float(queries[documents > 0].sum() / queries.sum())
    if shared >= _FEW_SHARED:
        return None
    return (
        f"only {shared:.0%} of the tokens of the queries occur in the documents; if they are of another language, the "
        "trimmed model keeps the tokens of both."
    )


def _tokenizer(model: Any, name: str) -> Tokenizer:
    """The one tokenizer of a model."""
    found = [fast_tokenizer_of(module) for module in model if hasattr(module, "tokenizer")]
    found += [fast_tokenizer_of(part) for module in model for part in _routes(module)]
    if not found or found[0] is None:
        raise UserError(f"{name} has no fast tokenizer, whose vocabulary could be trimmed; choose another.")
    if any(other is not None and other.get_vocab() != found[0].get_vocab() for other in found[1:]):
        raise UserError(f"{name} has several tokenizers with other tokens each, which trim cannot cut alike.")
    return found[0]


def _routes(module: Any) -> list[Any]:
    """The modules in a Router that have a tokenizer."""
    parts = [part for route in getattr(module, "sub_modules", {}).values() for part in route]
    return [part for part in parts if hasattr(part, "tokenizer")]


def _with_tokens(model: Any, tokenizer: Tokenizer, kept: np.ndarray, name: str) -> Any:
    """The model with these tokens only, in place."""
    cut, rows = with_tokens(tokenizer, kept), torch.from_numpy(kept)
    transformers = [part for part in model.modules() if hasattr(part, "get_input_embeddings")]
    sizes = {ids_of(tokenizer), *(len(each.get_input_embeddings().weight) for each in transformers)} - {len(kept)}
    new = {old: place for place, old in enumerate(kept.tolist())}
    for module in model.modules():
        if hasattr(module, "tokenizer"):
            _give(module, cut)
        if hasattr(module, "auto_model"):
            _cut_transformer(module.auto_model, rows, new)
        elif (change := _CHANGES.get(type(module).__name__)) is not None:
            change(module, rows, new)
        elif type(module).__name__ == "Dense" and module.linear.out_features in sizes:
            _cut_head(module, rows)
    _check_parts(model, sizes, name)
    return model


def _give(module: Any, cut: Tokenizer) -> None:
    """Replace a module's tokenizer, in a wrapper or not; wrappers may be shared."""
    owner, attribute = module, "tokenizer"
    while not isinstance(getattr(owner, attribute), Tokenizer):
        owner = getattr(owner, attribute)
        attribute = "_tokenizer" if hasattr(owner, "_tokenizer") else "tokenizer"
    setattr(owner, attribute, cut)


def _cut_transformer(transformer: Any, rows: torch.Tensor, new: dict[int, int]) -> None:
    """Cut the input embeddings, and the output ones of a masked language model, as the library resizes them."""
    inputs, outputs = transformer.get_input_embeddings(), transformer.get_output_embeddings()
    _rows_of(inputs.weight, rows)
    with torch.no_grad():  # the kept rows come first, and resizing drops the rest
        tensors = {id(part): part for part in (inputs.weight, *(outputs.parameters() if outputs is not None else ()))}
        for tensor in tensors.values():
            tensor[: len(rows)] = _rows_of(tensor, rows)
    for key, value in transformer.config.to_dict().items():
        if key.endswith("_token_id"):
            setattr(transformer.config, key, _renumbered(value, new))
    padding = inputs.padding_idx
    transformer.resize_token_embeddings(len(rows), mean_resizing=False)
    transformer.get_input_embeddings().padding_idx = None if padding is None else new.get(padding)


def _rows_of(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The rows of a matrix, or the numbers of a vector, for tokens."""
    if int(rows[-1]) >= len(weight):
        raise UserError(
            f"a token has the id {int(rows[-1])}, and there are {len(weight)} embeddings; correct the model."
        )
    return weight.detach()[rows.to(weight.device)]


def _renumbered(value: Any, new: dict[int, int]) -> Any:
    return [_renumbered(one, new) for one in value] if isinstance(value, list) else new.get(value)


def _cut_table(module: Any, rows: torch.Tensor, new: dict[int, int]) -> None:
    module.embedding = nn.EmbeddingBag.from_pretrained(_rows_of(module.embedding.weight, rows), freeze=False)
    module.num_embeddings = len(rows)


def _cut_words(module: Any, rows: torch.Tensor, new: dict[int, int]) -> None:
    weight = module.emb_layer.weight
    module.emb_layer = nn.Embedding.from_pretrained(_rows_of(weight, rows), freeze=not weight.requires_grad)


def _cut_weights(module: Any, rows: torch.Tensor, new: dict[int, int]) -> None:
    module.weight = nn.Parameter(_rows_of(module.weight, rows), requires_grad=module.weight.requires_grad)
    if hasattr(module, "num_dimensions"):
        module.num_dimensions = len(rows)


def _cut_terms(module: Any, rows: torch.Tensor, new: dict[int, int]) -> None:
    """Of the package's own modules over a vocabulary."""
    if hasattr(module, "weight"):
        _cut_weights(module, rows, new)
    if getattr(module, "expanded", None) is not None:
        module.expanded = module.expanded[rows.to(module.expanded.device)]
    module.dimension, module.special = len(rows), [new[token] for token in module.special]


def _cut_pooling(module: Any, rows: torch.Tensor, new: dict[int, int]) -> None:
    if module.embedding_dimension is not None:
        module.embedding_dimension = len(rows)


def _cut_head(module: Any, rows: torch.Tensor) -> None:
    """Of a map from hidden states to terms."""
    whole = module.linear
    module.linear, module.out_features = nn.Linear(whole.in_features, len(rows), whole.bias is not None), len(rows)
    module.linear.load_state_dict({name: _rows_of(part, rows) for name, part in whole.state_dict().items()})
    module.linear.to(whole.weight.device)


def _named_tokens(module: Any) -> list[int]:
    """Ids of tokens that a module's settings name: of the answers of a language model, or of what is scored alone."""
    if type(module).__name__ == "LogitScore":
        return [token for token in (module.true_token_id, module.false_token_id) if token is not None]
    return list(module.keep_only_token_ids or []) if type(module).__name__ == "MultiVectorMask" else []


def _cut_answers(module: Any, rows: torch.Tensor, new: dict[int, int]) -> None:
    module.true_token_id, module.false_token_id = new[module.true_token_id], new.get(module.false_token_id)


def _cut_mask(module: Any, rows: torch.Tensor, new: dict[int, int]) -> None:
    """Of a module that finds the ids of its skipped words again when it is loaded."""
    if module.keep_only_token_ids is not None:
        module.keep_only_token_ids = [new[token] for token in module.keep_only_token_ids]


def _cut_segments(module: Any, rows: torch.Tensor, new: dict[int, int]) -> None:
    module.separator = new[module.separator]


# What has a part for each token, or knows ids of tokens, besides transformers.
_CHANGES: dict[str, Callable[[Any, torch.Tensor, dict[int, int]], None]] = {
    "LexicalTerms": _cut_terms,
    "LogitScore": _cut_answers,
    "MultiVectorMask": _cut_mask,
    "SegmentHead": _cut_segments,
    "SparseStaticEmbedding": _cut_weights,
    "SpladePooling": _cut_pooling,
    "StaticEmbedding": _cut_table,
    "VocabularyPooling": _cut_terms,
    "WordEmbeddings": _cut_words,
}


def _check_parts(model: Any, sizes: set[int], name: str) -> None:
    """Refuse a model with other parts of one of these sizes, which code that it brings may have for each token."""
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.Linear)):
            is_left = len(module.weight) in sizes
        else:
            is_left = not type(module).__module__.startswith("torch.") and any(
                parameter.shape and parameter.shape[0] in sizes for parameter in module.parameters(recurse=False)
            )
        if is_left:
            raise UserError(f"{name} has a part for each token in its {type(module).__name__}, which trim cannot cut.")
