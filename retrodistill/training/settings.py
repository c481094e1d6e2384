"""Settings of training, as recipes write them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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


class CandidateSettings(Settings):
    """Whom the teacher scores.

    Attributes:
        sources: Retrievers that propose; by default bm25 and the dense teachers, or the recorded run.
        depth: Documents per query and source, or ``all`` for the whole corpus (teachers that score it at no cost).
        random: So many documents of the corpus drawn for each query besides. A recorded run has no scores for them:
            they count as the lowest of its list.
    """

    sources: list[str] | None = None
    depth: int | Literal["all"] = 100
    random: int = Field(default=0, ge=0)

    @field_validator("sources")
    @classmethod
    def _can_search(cls, sources: list[str] | None) -> list[str] | None:
        from retrodistill.errors import UserError
        from retrodistill.models.names import parse_model_name

        for source in sources or []:
            try:
                kind = parse_model_name(source).kind
            except UserError as error:
                raise ValueError(str(error)) from error
            if kind == "cross-encoder":
                raise ValueError(f"{source!r} scores pairs and proposes no candidates; name it as a teacher")
        return sources

    @field_validator("depth")
    @classmethod
    def _positive(cls, depth: int | str) -> int | str:
        if depth != "all" and int(depth) < 1:
            raise ValueError("depth is at least 1, or 'all'")
        return depth


class ObjectiveSettings(Settings):
    """One term of a stage's loss.

    Attributes:
        name: A key of `retrodistill.objectives.registry.OBJECTIVES`.
        weight: Of the term in the sum.
        student_temperature: Student scores are divided by it; cosines need about .05 (a scale of 20).
        sharpness: The teacher's temperature is its measured spread over this: lists then have a standard deviation of
            so many logits.
        teacher_temperature: A fixed temperature in place of the measured one.
    """

    name: str
    weight: float = Field(default=1.0, gt=0)
    student_temperature: float = Field(default=0.05, gt=0)
    sharpness: float = Field(default=1.0, gt=0)
    teacher_temperature: float | None = Field(default=None, gt=0)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        from retrodistill.errors import unknown
        from retrodistill.objectives.registry import OBJECTIVES

        if name not in OBJECTIVES:
            raise ValueError(str(unknown("objective", name, OBJECTIVES)))
        return name


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
    """

    epochs: float = Field(default=1.0, gt=0)
    max_steps: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, ge=0)


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
        from retrodistill.errors import unknown

        if sampler not in SAMPLERS:
            raise ValueError(str(unknown("sampler", sampler, SAMPLERS)))
        return sampler


class RegulariserSettings(Settings):
    """What keeps a sparse student sparse.

    Attributes:
        name: A key of `retrodistill.objectives.registry.REGULARISERS`.
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
        from retrodistill.errors import unknown
        from retrodistill.objectives.registry import REGULARISERS

        if name not in REGULARISERS:
            raise ValueError(str(unknown("regulariser", name, REGULARISERS)))
        return name


class StageSettings(Settings):
    """One stage of training.

    Attributes:
        objectives: Terms of the loss, summed; a bare name stands for its defaults.
        towers: ``query`` trains the query side against stored document embeddings; ``both`` encodes documents too;
            ``lexical`` trains the lexical half of a hybrid student, on both sides, against stored dense halves;
            ``head`` trains what a sparse or multi-vector student has behind its transformer, on both sides, against
            stored hidden states, at a small part of the cost of ``both``.
        texts: What is trained on.
        candidates: Whom the teacher scores; needed by list objectives.
        groups: How groups are drawn for ``both`` and ``head``.
        regularisers: What keeps a sparse student sparse.
        training: How long and how fast.
    """

    objectives: list[ObjectiveSettings] = Field(min_length=1)
    towers: Literal["query", "both", "lexical", "head"] = "query"
    texts: TextSettings = TextSettings()
    candidates: CandidateSettings = CandidateSettings()
    groups: GroupSettings = GroupSettings()
    regularisers: list[RegulariserSettings] = Field(default_factory=list)
    training: TrainingSettings = TrainingSettings()

    @field_validator("objectives", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        terms = [given] if isinstance(given, (str, dict)) else given
        if not isinstance(terms, (list, tuple)):
            return terms  # pydantic says what is wanted
        return [{"name": term} if isinstance(term, str) else term for term in terms]

    @property
    def needs_lists(self) -> bool:
        """Whether some objective sees candidates."""
        from retrodistill.objectives.registry import LIST_OBJECTIVES

        return any(term.name in LIST_OBJECTIVES for term in self.objectives)

    @property
    def aligns(self) -> bool:
        """Whether some objective sees the teacher's embeddings, so that texts without candidates teach too."""
        from retrodistill.objectives.registry import EMBEDDING_OBJECTIVES

        return any(term.name in EMBEDDING_OBJECTIVES for term in self.objectives)

    @property
    def is_contrastive(self) -> bool:
        """Whether some objective needs the pseudo-query's own document in its list."""
        from retrodistill.objectives.registry import NEED_POSITIVES

        return any(term.name in NEED_POSITIVES for term in self.objectives)
