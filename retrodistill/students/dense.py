"""Dense students: any bi-encoder, its first layers if wanted, a projection to the teacher's width saved inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.sentences import title_texts
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import with_modules
from retrodistill.rankers.dense import DenseRanker
from retrodistill.students.registry import Kind, StageDefaults

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from retrodistill.training.stages import StageRun
    from retrodistill.training.trainer import History

_FITTED = 4096  # texts that a map is fitted to


def dense_student(
    source: str,
    *,
    layers: int | None = None,
    dimension: int | None = None,
    mapped: bool = False,
    similarity: Literal["cosine", "dot"] | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> SentenceTransformer:
    """Build a dense student.

    Args:
        source: Folder or hub name of a sentence-transformers model to start from.
        layers: Number of transformer layers to keep, from the first.
        dimension: Width of its vectors: where it differs from the model's, a linear map without bias is added as the
            model's last module but the normalization, and saved with it (LEAF, arXiv 2509.12539).
        mapped: Add such a map whatever the width, for `retrodistill.students.dense_training.fit_map`.
        similarity: ``cosine`` or ``dot``; the model's own by default.
        max_length: Tokens kept of a text; the model's own by default.
        seed: Of the projection's initial values.

    Raises:
        UserError: The model is not to be found, has fewer layers, or the maximum length is above what it can read.
    """
    import torch
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Normalize

    model = load_bi_encoder(source, layers=layers)
    if similarity is not None:
        model.similarity_fn_name = similarity
    if max_length is not None:
        _set_max_length(model, max_length, source)
    width = Encoder(model, f"dense:{source}").dimension
    if not mapped and dimension in (None, width):
        return model
    modules = [module for module in model if not isinstance(module, Normalize)]
    torch.manual_seed(seed)
    projection = Dense(width, dimension or width, bias=False, activation_function=torch.nn.Identity())
    torch.nn.init.orthogonal_(projection.linear.weight)
    modules.append(projection)
    if str(model.similarity_fn_name) == "cosine":
        modules.append(Normalize())
    return with_modules(model, modules, "SentenceTransformer")


def _set_max_length(model: SentenceTransformer, max_length: int, source: str) -> None:
    transformer: Any = getattr(model[0], "auto_model", None)
    if transformer is None:
        raise UserError(f"max_length={max_length}: model {source} is not a transformer and reads texts of any length.")
    longest = getattr(transformer.config, "max_position_embeddings", None)
    if max_length < 1 or (longest is not None and max_length > longest):
        raise UserError(f"max_length={max_length}: model {source} reads 1 to {longest or 'any number of'} tokens.")
    model.max_seq_length = max_length


def start_dense(settings: Any, data: Any) -> SentenceTransformer:
    """A recipe's dense student before training: cut, projected or mapped, with its exits."""
    from retrodistill.students.dense_training import fit_exit_maps, fit_map
    from retrodistill.students.multi_exit import multi_exit

    fitted = settings.initialize == "fitted"
    in_space = settings.dimension == "space" or fitted
    model = dense_student(
        settings.model.partition(":")[2],
        layers=settings.layers,
        dimension=data.space.dimension if in_space else settings.dimension,
        mapped=fitted,
        max_length=settings.max_length,
        seed=data.seed,
    )
    if fitted:
        texts = _fitted_texts(data)
        fit_map(model, texts, embed(data.space, texts, "query"), Encoder(model, "dense:student").prompt("query"))
    if not settings.exits:
        return model
    exits = multi_exit(model, settings.exits, project=settings.project_exits)
    if settings.project_exits:
        fit_exit_maps(exits, _fitted_texts(data), Encoder(exits, "dense:student").prompt("query"))
    return exits


def _fitted_texts(data: Any) -> list[str]:
    """Training queries and titles, evenly drawn, that maps are fitted to."""
    texts = [*data.queries.texts, *title_texts(data.collection).texts]
    rows = np.unique(np.linspace(0, len(texts) - 1, min(_FITTED, len(texts)), dtype=int))
    return [texts[row] for row in rows]


def _check(settings: Any) -> None:
    if settings.initialize not in ("teacher", "fitted"):
        raise ValueError(f"initialize: {settings.initialize} is for static students; dense ones take fitted")
    if any(stage.train == "lexical" for stage in settings.stages):
        raise ValueError("a stage with train: lexical needs a lexical half; set the student's lexical_dim to its width")
    if settings.project_exits and not settings.exits:
        raise ValueError("project_exits is about exits; set exits, e.g. [2, 4]")


def train_one_vector(run: StageRun) -> History:
    """Train a stage of a student with one vector per text; torch is imported only now."""
    from retrodistill.students.dense_training import train_dense

    return train_dense(run)


KIND = Kind(
    "dense",
    library_class="SentenceTransformer",
    written="dense:NAME",
    start=start_dense,
    load=lambda folder: load_encoder(f"dense:{folder}", DENSE),
    wrap=Encoder,
    train=train_one_vector,
    ranker=lambda student, documents: DenseRanker(documents, student, checked=False),
    parts=("query_encoder", "both_encoders"),
    defaults=lambda _: StageDefaults("query_encoder", {"epochs": 4, "learning_rate": 5e-5, "batch_size": 32}),
    options=frozenset({"initialize", "dimension", "lexical_dim", "exits", "project_exits"}),
    check=_check,
    index="faiss",
    has_own_documents=False,
    is_dense=True,
    has_vector=True,
    can_teach=True,
    card="dense",
)
