"""Settings of training, as recipes write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from retrodistill.core.settings import Settings
from retrodistill.training.list_settings import (
    CandidateSettings,
    SelectionSettings,
    TeacherSettings,
    teacher_members,
)

if TYPE_CHECKING:
    from retrodistill.objectives.registry import Objective

__all__ = [
    "CandidateSettings",
    "GroupSettings",
    "ObjectiveSettings",
    "RegularizerSettings",
    "SelectionSettings",
    "Settings",
    "StageSettings",
    "TeacherSettings",
    "TextSettings",
    "TrainingSettings",
    "teacher_members",
]


class TextSettings(Settings):
    """Which texts a stage trains on.

    Attributes:
        queries: The training split's queries.
        repeat_queries: Take them so many times in an epoch, where pseudo-queries would drown them.
        titles: Every document's title.
        sentences: So many sentences of each document.
        documents: Every document's whole text: all that has a vector where the space is a file of vectors.
    """

    queries: bool = True
    repeat_queries: int = Field(default=1, ge=1)
    titles: bool = True
    sentences: int = Field(default=3, ge=0)
    documents: bool = False

    @property
    def has_pseudo_queries(self) -> bool:
        """Whether it trains on texts of documents, so that a collection without training queries will do."""
        return self.titles or self.sentences > 0 or self.documents


class ObjectiveSettings(Settings):
    """One term of a stage's loss.

    Attributes:
        name: A key of `retrodistill.objectives.registry.OBJECTIVES`.
        weight: Of the term in the sum.
        student_temperature: Student scores are divided by it; cosines need about .05 (a scale of 20).
        target_std: The teacher's temperature is its measured spread over this: lists then have a standard deviation of
            so many logits.
        teacher_temperature: A fixed temperature in place of the measured one.
    """

    name: str
    weight: float = Field(default=1.0, gt=0)
    student_temperature: float = Field(default=0.05, gt=0)
    target_std: float = Field(default=1.0, gt=0)
    teacher_temperature: float | None = Field(default=None, gt=0)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _registered(name, "objective")

    @property
    def objective(self) -> Objective:
        """What it is in the registry."""
        from retrodistill.objectives.registry import get_objective

        return get_objective(self.name)


class TrainingSettings(Settings):
    """How long and how fast; AdamW throughout.

    Attributes:
        epochs: Passes over the training texts.
        max_steps: Stop after so many steps; 0 for no bound.
        batch_size: Texts (or groups) per step and device.
        learning_rate: Peak.
        warmup: Share of the steps during which the rate rises linearly.
        schedule: What the rate does after.
        weight_decay: AdamW's.
        max_gradient_norm: Gradients are scaled down to it; 0 leaves them. Token tables do better without.
        precision: Of a transformer's products on a GPU; all else, and everything on a CPU, is float32.
    """

    epochs: float = Field(default=1.0, gt=0)
    max_steps: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"


class GroupSettings(Settings):
    """Groups of a few documents per query, where documents take part in training.

    Attributes:
        documents: Per query.
        sampler: How they are drawn from the list.
        draws: Groups per query and epoch.
        depth: Of a list over the whole corpus, the sampler draws from so many of the teacher's best.
        random: Of a list over the whole corpus, so many more documents are drawn from all of it.
    """

    documents: int = Field(default=8, ge=2)
    sampler: str = "stratified"
    draws: int = Field(default=1, ge=1)
    depth: int = Field(default=100, ge=2)
    random: int = Field(default=0, ge=0)

    @field_validator("sampler")
    @classmethod
    def _known(cls, sampler: str) -> str:
        from retrodistill.candidates.samplers import SAMPLERS
        from retrodistill.core.errors import unknown

        if sampler not in SAMPLERS:
            raise ValueError(str(unknown("sampler", sampler, SAMPLERS)))
        return sampler


class RegularizerSettings(Settings):
    """What keeps a sparse student sparse.

    Attributes:
        name: A key of `retrodistill.objectives.registry.REGULARIZERS`.
        weight: Of its value in the loss, once warm.
        side: Whose term weights it sees.
        terms: How many of a text's terms ``top-k`` lets live.
        warmup: Share of the steps over which the weight grows, with the square of the step.
    """

    name: str
    weight: float = Field(gt=0)
    side: Literal["document", "query"] = "document"
    terms: int = Field(default=128, ge=1)
    warmup: float = Field(default=1 / 3, ge=0, le=1)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _registered(name, "regularizer")


class StageSettings(Settings):
    """One stage of training.

    Attributes:
        objectives: Terms of the loss, summed; a bare name stands for its defaults.
        teacher: Who scores this stage's lists, one or several; by default the recipe's teacher.
        labels: What becomes of the teacher's scores, one of `retrodistill.rankers.labels.LABELS`: ``bce`` needs
            ``sigmoid`` (of logits), ``cosine`` or ``mean`` (of recorded labels); those of several are averaged.
        train: ``query_encoder`` trains the query side against stored document embeddings; ``both_encoders`` encodes
            documents with gradients too;
            ``lexical`` trains the lexical half of a hybrid student, on both sides, against stored dense halves;
            ``head`` trains what a sparse or multi-vector student has behind its transformer, on both sides, against
            stored hidden states, at a small part of the cost of ``both_encoders``.
        texts: What is trained on.
        candidates: Whom the teacher scores; needed by list objectives.
        selection: Which of the texts are trained on, where not all.
        positives: What contrastive and in-batch objectives take for right: a pseudo-query's ``source_document``, the
            one that it was taken from, or the training split's ``labels``, of which the best by grade counts; labeled
            documents join the candidates.
        groups: How groups are drawn for ``both_encoders`` and ``head``.
        batches: ``shuffled``, or of one of the ``topics`` each (TAS-B, arXiv 2104.06967): clusters of the texts'
            embeddings in the space.
        topics: How many; by default so many that each makes about six batches.
        regularizers: What keeps a sparse student sparse.
        matryoshka: The loss is taken on so many leading dimensions of a dense or static student's vectors too.
        exit_kl: Weight of the divergence by which the deepest exit teaches the others; 1 by default.
        exit_weights: Weights of what exits learn, by layer; 1 by default.
        own_tokens: With head: vdr, weight of the objectives on scores of which one side is its own tokens, each of
            weight 1 (the semi-parametric half of VDR's loss, ICLR 2024); no term learns a weight by it, as by the
            student's lexical_terms.
        training: How long and how fast.
    """

    objectives: list[ObjectiveSettings] = Field(min_length=1)
    teacher: list[TeacherSettings] = Field(default_factory=list)
    labels: str = "scores"
    train: Literal["query_encoder", "both_encoders", "lexical", "head"] = "query_encoder"
    texts: TextSettings = TextSettings()
    candidates: CandidateSettings = CandidateSettings()
    selection: SelectionSettings | None = None
    positives: Literal["source_document", "labels"] = "source_document"
    groups: GroupSettings = GroupSettings()
    batches: Literal["shuffled", "topics"] = "shuffled"
    topics: int | None = Field(default=None, ge=1)
    regularizers: list[RegularizerSettings] = Field(default_factory=list)
    matryoshka: list[int] = Field(default_factory=list)
    exit_kl: float | None = Field(default=None, ge=0)
    exit_weights: dict[int, float] = Field(default_factory=dict)
    own_tokens: float = Field(default=0.0, ge=0)
    training: TrainingSettings = TrainingSettings()

    @field_validator("objectives", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        terms = [given] if isinstance(given, (str, dict)) else given
        if not isinstance(terms, (list, tuple)):
            return terms  # pydantic says what is wanted
        return [{"name": term} if isinstance(term, str) else term for term in terms]

    @field_validator("teacher", mode="before")
    @classmethod
    def _members(cls, given: Any) -> Any:
        return teacher_members(given)

    @field_validator("labels")
    @classmethod
    def _known_labels(cls, name: str) -> str:
        from retrodistill.core.errors import unknown
        from retrodistill.rankers.labels import LABELS

        if name not in LABELS:
            raise ValueError(str(unknown("kind of labels", name, LABELS)))
        return name

    @model_validator(mode="after")
    def _keys_fit(self) -> StageSettings:
        wanting = {
            "teacher": bool(self.teacher),
            "labels": self.labels != "scores",
            "selection": self.selection is not None,
            "candidates.budget": self.candidates.budget is not None,
        }
        told = next((key for key, said in wanting.items() if said), None)
        if told and not self.needs_lists:
            raise ValueError(f"{told} is about candidates, and no objective of this stage sees any; add one such as kl")
        if self.labels != "scores" and self.candidates.depth == "all":
            raise ValueError("labels are made of pairs' scores: set candidates.depth to a number, not 'all'")
        if self.labels == "scores" and any(term.objective.needs("labels") for term in self.objectives):
            raise ValueError("bce learns labels from 0 to 1: set labels: sigmoid (of logits), cosine, or mean")
        if self.positives == "labels" and not self.is_contrastive:
            raise ValueError("positives: labels is for contrastive and in-batch objectives; add one of them")
        if self.candidates.depth != "all" and any(term.objective.needs("batch_targets") for term in self.objectives):
            raise ValueError("in-batch-margin-mse asks the teacher about any document: set candidates.depth: all")
        if self.topics is not None and self.batches != "topics":
            raise ValueError("topics is for batches: topics; set both, or neither")
        return self

    @property
    def has_own_teacher(self) -> bool:
        """Whether its lists are taught otherwise than by the recipe's teacher as it is."""
        return bool(self.teacher) or self.labels != "scores"

    @property
    def needs_own_document(self) -> bool:
        """Whether pseudo-queries must see the document that they were taken from."""
        return self.is_contrastive and self.positives == "source_document"

    @property
    def needs_labels(self) -> bool:
        """Whether judgments of the training queries take part: as positives, or in a selection."""
        return "labels" in (self.positives, self.selection.positives if self.selection is not None else None)

    @property
    def needs_lists(self) -> bool:
        """Whether some objective sees candidates."""
        return any(term.objective.needs_lists for term in self.objectives)

    @property
    def aligns(self) -> bool:
        """Whether some objective sees the teacher's embeddings, so that texts without candidates teach too."""
        return any(term.objective.sees == "embeddings" for term in self.objectives)

    @property
    def is_contrastive(self) -> bool:
        """Whether some objective needs the pseudo-query's own document in its list."""
        return any(term.objective.needs_positives for term in self.objectives)


def _registered(name: str, what: str) -> str:
    """The name of an objective or regularizer.

    Raises:
        ValueError: There is none of that name.
    """
    from retrodistill.core.errors import UserError
    from retrodistill.objectives import registry

    try:
        {"objective": registry.get_objective, "regularizer": registry.get_regularizer}[what](name)
    except UserError as error:
        raise ValueError(str(error)) from error
    return name
