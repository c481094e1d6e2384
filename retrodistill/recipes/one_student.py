"""A student by its name alone, for a call instead of a recipe: what else fits its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.recipes.settings import OWN_DOCUMENTS
from retrodistill.training.settings import CandidateSettings, TextSettings, TrainingSettings

_TOKEN_WIDTH = 128  # of a multi-vector student's token vectors (ColBERT, arXiv 2004.12832)
_DEPTH = 100
_NOT_HERE = {"stages": "give stages as an argument of distill", "control": "a recipe has controls: see run_recipe"}


@dataclass(frozen=True)
class Fitting:
    """How one kind of student learns, where nothing else is said; values as in the recipes of configs/.

    Attributes:
        train: What is trained.
        training: How long and how fast.
        temperature: That its scores are divided by; None for the default, which is meant for cosines.
        regularizers: What keeps it sparse.
    """

    train: str
    training: dict[str, Any]
    temperature: float | None = None
    regularizers: list[dict[str, Any]] = field(default_factory=list)


_FITTING = {
    "static": Fitting("query_encoder", {"epochs": 12, "learning_rate": 1e-3, "batch_size": 64}),
    "dense": Fitting("query_encoder", {"epochs": 4, "learning_rate": 5e-5, "batch_size": 32}),
    "multi-vector": Fitting("head", {"learning_rate": 1e-3, "batch_size": 32, "warmup": 0.05}, 0.02),
    "cross-encoder": Fitting("both_encoders", {"learning_rate": 5e-5, "batch_size": 16}, 1.0),
    "prett": Fitting("head", {"learning_rate": 1e-4, "batch_size": 16}, 1.0),
    "tk": Fitting("head", {"learning_rate": 3e-3, "batch_size": 16, "warmup": 0.05}, 1.0),
}
_WHOLE = {"learning_rate": 2e-5, "batch_size": 8}  # where a transformer is trained, not what stands behind it
_TERM_HEAD = Fitting(
    "head",
    {"epochs": 2, "learning_rate": 4e-3, "batch_size": 32, "warmup": 0.05, "max_gradient_norm": 0},
    1.2,
    [{"name": "flops", "weight": 0.01}],
)
_SPLADE = Fitting(
    "both_encoders",
    _WHOLE,
    0.3,
    [{"name": "flops", "weight": 0.003}, {"name": "flops", "weight": 0.003, "side": "query"}],
)
_INFERENCE_FREE = Fitting("both_encoders", _WHOLE, 1.2, [{"name": "flops", "weight": 0.01}])
_VDR = Fitting("both_encoders", _WHOLE, 1.0)  # has a fixed number of terms already


def one_student(
    given: str | Mapping[str, Any],
    *,
    objectives: list[Any],
    train: str | None,
    training: TrainingSettings | Mapping[str, Any] | None,
    stages: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """Settings of a student for `StudentSettings`; what was said stands, what was not is chosen by its kind.

    Args:
        given: Its model, or a mapping of `StudentSettings` without ``stages`` and ``control``.
        objectives: Of its one stage; a bare name gets the temperature that the scores of this kind need.
        train: Of its one stage.
        training: Of its one stage; keys that are left out are chosen, too.
        stages: A curriculum in place of that stage.

    Raises:
        UserError: No model is named, or the settings say what a call says otherwise.
    """
    said = {"model": given} if isinstance(given, str) else dict(given)
    if not isinstance(said.get("model"), str):
        raise UserError("distill: a student needs a model, e.g. student={'model': 'dense:all-MiniLM-L6-v2'}.")
    for key, advice in _NOT_HERE.items():
        if key in said:
            raise UserError(f"distill: {key} is no setting of student here; {advice}.")
    kind, _, name = said["model"].partition(":")
    if kind in _ADDED and name:
        said = {**_ADDED[kind](said, name), **said}
    fit = _fitting(kind, said)
    chosen = train or ("lexical" if said.get("lexical_dim") else fit.train)
    curriculum = stages or [_stage(fit, objectives, chosen, training)]
    own = kind in OWN_DOCUMENTS or any(stage["train"] != "query_encoder" for stage in curriculum)
    return {"documents": "student" if own else "frozen", **said, "stages": curriculum, "control": None}


def _stage(
    fit: Fitting, objectives: list[Any], train: str, training: TrainingSettings | Mapping[str, Any] | None
) -> dict[str, Any]:
    terms = objectives
    if fit.temperature is not None:
        terms = [
            {"name": one, "student_temperature": fit.temperature} if isinstance(one, str) else one for one in terms
        ]
    default = _WHOLE if train == "both_encoders" and fit.train == "head" else fit.training
    stage = {
        "objectives": terms,
        "train": train,
        "training": training.model_dump()
        if isinstance(training, TrainingSettings)
        else {**default, **(training or {})},
        "texts": TextSettings().model_dump(),
        "candidates": CandidateSettings(depth=_DEPTH).model_dump(),
    }
    return {**stage, "regularizers": fit.regularizers} if fit.regularizers else stage


def _fitting(kind: str, said: Mapping[str, Any]) -> Fitting:
    if kind == "sparse" and said.get("queries") == "inference-free":
        return _TERM_HEAD if "lexical_terms" in said else _INFERENCE_FREE
    if kind == "sparse":
        return _VDR if said.get("head") == "vdr" else _SPLADE
    return _FITTING.get(kind, _FITTING["dense"])  # a kind that is none is refused with the rest of the settings


def _of_tokens(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A width below the transformer's, so that there is a projection to train; a multi-vector encoder has its own."""
    from retrodistill.encoders.loading import load_bi_encoder, load_multi_vector

    if "dimension" in said:
        return {}
    try:
        load_multi_vector(name)
    except UserError:
        transformer: Any = load_bi_encoder(name)[0]  # says what is wrong where it is neither
        return {"dimension": max(1, min(_TOKEN_WIDTH, int(transformer.get_embedding_dimension()) // 2))}
    return {}


def _of_terms(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Inference-free queries and lexical terms where a bi-encoder gets a head; a sparse encoder has its own."""
    from retrodistill.encoders.loading import load_bi_encoder, load_sparse
    from retrodistill.encoders.sparse import SparseTextEncoder

    if said.get("head") == "vdr" or said.get("queries") == "model":
        return {}
    try:
        made = load_sparse(name)
    except UserError:
        load_bi_encoder(name)  # says what is wrong where it is neither
        return {"queries": "inference-free", "lexical_terms": True}
    free = SparseTextEncoder(made, f"sparse:{name}").is_inference_free
    return {"queries": "inference-free"} if free else {}


_ADDED: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    "multi-vector": _of_tokens,
    "sparse": _of_terms,
}
