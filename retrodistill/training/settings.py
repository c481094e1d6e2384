"""Settings of training, as recipes write them: stages, objectives, teachers, candidates, texts and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from retrodistill.core.settings import OneOf, Settings, value_errors
from retrodistill.encoders.names import check_can_search, parse_model_name

if TYPE_CHECKING:
    from retrodistill.objectives.registry import Objective

CURRENT_STUDENT = "student"  # among the sources of candidates; with a name, among the teachers


def _short_forms(key: str, accepted: Any) -> BeforeValidator:
    """Reads a list of mappings from its short forms: a single item for a list, a name for a mapping with `key`."""

    def written_out(given: Any) -> Any:
        items = [given] if isinstance(given, (str, dict)) else [] if given is None else given
        if not isinstance(items, (list, tuple)):
            return items  # pydantic reports it
        return [{key: item} if isinstance(item, str) else item for item in items]

    return BeforeValidator(written_out, json_schema_input_type=accepted)


class TeacherSettings(Settings):
    """One member of a teacher."""

    model: str
    """`kind:name`. A stage also takes `student:NAME`, another student of the recipe after its last stage;
    `student:NAME@2` after its second stage; `student:NAME@0` before its first."""
    weight: float = Field(default=1.0, ge=0)
    """Weight in the fusion."""

    @field_validator("model")
    @classmethod
    def _parses(cls, model: str) -> str:
        if is_student(model):
            parse_student(model)
            return model
        with value_errors():
            return str(parse_model_name(model))


def is_student(model: str) -> bool:
    """Whether a teacher's name is that of a student of the recipe: ``student:NAME``."""
    return model.startswith(f"{CURRENT_STUDENT}:")


def parse_student(name: str) -> tuple[str, int | None]:
    """The student of ``student:NAME`` or ``student:NAME@2``, and after how many of its stages; None for all.

    Raises:
        ValueError: Neither of the two forms.
    """
    rest = name.removeprefix(f"{CURRENT_STUDENT}:") if is_student(name) else ""
    student, at, stages = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if not student or (at and not stages.isdigit()):
        raise ValueError(f"{name!r}: write student:NAME, or student:NAME@2 for that student after its second stage")
    return student, int(stages) if at else None


Teachers = Annotated[
    list[TeacherSettings], _short_forms("model", str | TeacherSettings | list[str | TeacherSettings] | None)
]


class FilterSettings(Settings):
    """Which negatives are dropped because the teacher scores them about as high as the positive: they may be relevant.

    Positive-aware mining (NV-Retriever, arXiv 2407.15831).
    """

    margin: float | None = Field(default=None, ge=0)
    """Drop documents that score above the positive's score minus this, in the unit of the teacher's scores."""
    relative: float | None = Field(default=None, gt=0, le=1)
    """Drop documents that score above this share of the positive's score, e.g. 0.95. For calibrated scores only, such
    as cosines or `labels: sigmoid`; a share of logits or z-scores has no meaning."""

    @model_validator(mode="after")
    def _is_one(self) -> FilterSettings:
        if (self.margin is None) == (self.relative is None):
            raise ValueError("a filter is either a margin or relative, e.g. {margin: 0.05} or {relative: 0.95}")
        return self

    def without_meaning(self, teachers: Sequence[str], fusion: str) -> str | None:
        """What makes a share of these teachers' scores meaningless, as far as names tell; None if nothing does."""
        if self.relative is None:
            return None
        if len(teachers) > 1:
            return None if fusion in ("minmax", "reciprocal-rank") else f"fusion: {fusion}"
        return "a cross-encoder's logits" if any(name.startswith("cross-encoder:") for name in teachers) else None


class CandidateSettings(Settings):
    """The candidates that the teacher scores."""

    sources: list[str] | None = None
    """Retrievers that propose candidates; by default bm25 and the dense teachers, or the recorded run. `student` is the
    student in training, as it is at the start of the stage."""
    depth: int | Literal["all"] = 100
    """Documents per query and source, or `all` for the whole corpus (for teachers that score it at no cost)."""
    random: int = Field(default=0, ge=0)
    """Random documents of the corpus added for each query. A recorded run has no scores for them, and a budget does not
    buy any: they count as the lowest of their list."""
    shared: int = Field(default=0, ge=0)
    """Random documents of the corpus that all lists of a batch share, new ones for each batch, where lists are learned
    whole (for teachers that score any document at no cost). The cost does not grow with the corpus."""
    budget: int | str | None = None
    """Limit on the mined pairs that the teacher scores: a number, or a share of them such as `25%`. Pairs that earlier
    stages of the student bought from the same teacher are kept and count. Pairs that a stage would hide are not scored,
    and random documents are free."""
    budget_by: Annotated[str, OneOf("way to spend a budget", "retrodistill.candidates.selection:BUDGETS")] = "robust"
    """How the pairs of the budget are chosen: `robust` by the z-scores of the sources that score every pair cheaply
    (bm25, dense), `uncertain` by the student as it is when the stage begins, `random` as their control."""
    filter: FilterSettings | None = Field(default=None, exclude_if=lambda given: given is None)
    """A filter of false negatives, by the teacher's score of the text's positive (see the stage's `positives`). Texts
    without a positive keep all candidates."""

    @property
    def by_student(self) -> bool:
        """Whether the student in training chooses the pairs that the teacher scores."""
        return self.budget is not None and self.budget_by == "uncertain"

    @field_validator("budget")
    @classmethod
    def _is_budget(cls, budget: int | str | None) -> int | str | None:
        from retrodistill.candidates.selection import pairs_within

        if budget is not None:
            with value_errors():
                pairs_within(budget, 100)
        return budget

    @model_validator(mode="after")
    def _budget_of_lists(self) -> CandidateSettings:
        if self.budget is not None and (self.depth == "all" or self.shared):
            raise ValueError("a budget is for pairs of lists: set candidates.depth to a number, without shared")
        if self.depth == "all" and self.shared:
            raise ValueError("depth: all already has every document; set candidates.depth to a number with shared")
        if self.filter is not None and self.depth == "all":
            raise ValueError("a filter is for mined candidates: set candidates.depth to a number")
        if self.filter is not None and self.budget is not None:
            raise ValueError("a filter needs the score of each positive, which a budget may not buy; set one of them")
        return self

    @field_validator("sources")
    @classmethod
    def _can_search(cls, sources: list[str] | None) -> list[str] | None:
        for source in sources or []:
            if source != CURRENT_STUDENT:
                with value_errors():
                    check_can_search(parse_model_name(source))
        return sources

    @field_validator("depth")
    @classmethod
    def _positive(cls, depth: int | str) -> int | str:
        if depth != "all" and int(depth) < 1:
            raise ValueError("depth is at least 1, or 'all'")
        return depth


class SelectionSettings(Settings):
    """The texts that a stage trains on, by the student as it is when the stage begins."""

    by: Annotated[str, OneOf("rule of selection", "retrodistill.candidates.selection:RULES")] = "prod"
    """`prod`: queries that the teacher gets right and the student almost does (PROD, WWW 2023). The other rules choose
    a `share` of all texts: `disagreement`, those on whose candidates student and teacher disagree most (as HARD,
    arXiv 2305.14890, draws examples); `topics`, drawn in proportion to the mean disagreement on their topic (as DDK,
    arXiv 2407.16154, draws domains); `random`, their control. Several stages in a row choose anew (with `random`,
    Repeated Random Sampling, arXiv 2305.18424)."""
    share: float | None = Field(default=None, gt=0, lt=1, exclude_if=lambda given: given is None)
    """The share of the texts, for all rules but `prod`."""
    topics: int | None = Field(default=None, ge=2, exclude_if=lambda given: given is None)
    """Number of topics for `topics`, 32 by default."""
    ranks: tuple[int, int] = (2, 15)
    """The student ranks its best positive within these two ranks, inclusive; the teacher ranks it first."""
    positives: Literal["labels", "ensemble"] = "labels"
    """What counts as relevant: `labels` of the training split, or what the `ensemble` ranks first (the recipe's teacher
    if the stage names another, else the recipe's ensemble)."""

    @field_validator("ranks")
    @classmethod
    def _is_range(cls, ranks: tuple[int, int]) -> tuple[int, int]:
        if not 2 <= ranks[0] <= ranks[1]:
            raise ValueError("ranks are a first, at least 2, and a last that is not below it, e.g. [2, 15]")
        return ranks

    @model_validator(mode="after")
    def _rule_fits(self) -> SelectionSettings:
        if (self.share is None) != (self.by == "prod"):
            raise ValueError(
                "share is for other rules than prod; remove it"
                if self.by == "prod"
                else f"by: {self.by} chooses a share of the texts; give it, e.g. share: 0.5"
            )
        if self.topics is not None and self.by != "topics":
            raise ValueError("topics is for by: topics; set both, or neither")
        given = {"ranks": self.ranks != (2, 15), "positives": self.positives != "labels"}
        of_prod = next((key for key, is_given in given.items() if is_given), None)
        if self.by != "prod" and of_prod:
            raise ValueError(f"{of_prod} is for by: prod; remove it")
        return self

    @property
    def reads_positives(self) -> bool:
        """Whether it asks which document is relevant."""
        return self.by == "prod"


class TextSettings(Settings):
    """The texts that a stage trains on."""

    queries: bool = True
    """The queries of the training split."""
    repeat_queries: int = Field(default=1, ge=1)
    """Times that an epoch has each query, so that pseudo-queries do not outnumber them."""
    titles: bool = True
    """The title of each document."""
    sentences: int = Field(default=3, ge=0)
    """Sentences per document."""
    phrases: int = Field(default=0, ge=0, exclude_if=lambda given: not given)
    """Phrases of one to three words per document, which are as short as many logged queries. Their source documents are
    not masked: other documents hold them, too."""
    documents: bool = False
    """The whole text of each document. Where the document encoder is a file of vectors, only these have a vector."""
    document_words: int | None = Field(default=None, ge=1, exclude_if=lambda given: given is None)
    """Most words of a document's text, in whole sentences from its beginning; null for all. For a student that reads
    fewer tokens than its teacher (`max_length`): the teacher then gives vectors of what the student reads."""
    generated: str | None = Field(default=None, exclude_if=lambda given: given is None)
    """A file of queries that a model wrote for documents, as `retrodistill generate` writes it: JSONL with `_id`,
    `text`, and `document_id`."""
    joined: bool = Field(default=False, exclude_if=lambda given: not given)
    """For each document, one of its sentences followed by one of another document: augmentation. For objectives without
    positives, since two documents are as relevant."""
    word_dropout: float | None = Field(default=None, gt=0, lt=1, exclude_if=lambda given: given is None)
    """A copy of each text of a document without this share of its words: augmentation. The teacher reads the copy,
    too."""
    limit: int | None = Field(default=100_000, ge=1)
    """Most training texts, repeated queries aside and copies included; null for no limit. Queries come first, up to
    half of the limit if pseudo-queries are wanted too; then generated queries, up to half of what is left; then the
    titles, sentences, and phrases of documents. All are drawn evenly."""

    @model_validator(mode="after")
    def _words_of_documents(self) -> TextSettings:
        if self.document_words is not None and not self.documents:
            raise ValueError("document_words is for documents: true; set both, or neither")
        return self

    @property
    def of_documents(self) -> dict[str, Any]:
        """Which pseudo-queries are wanted, and the limit, as `training_texts` takes them."""
        return self.model_dump(exclude={"queries", "repeat_queries"})

    @property
    def per_document(self) -> int:
        """Most texts of a document that are drawn from it."""
        return self.titles + self.sentences + self.phrases + self.documents + self.joined

    @property
    def has_sources(self) -> bool:
        """Whether it has pseudo-queries that are not their whole source document."""
        return self.per_document > self.documents or self.generated is not None

    @property
    def has_pseudo_queries(self) -> bool:
        """Whether it trains on pseudo-queries, so that a collection needs no training queries."""
        return self.per_document > 0 or self.generated is not None


class ObjectiveSettings(Settings):
    """One term of a stage's loss."""

    name: Annotated[str, OneOf("objective", "retrodistill.objectives.registry:OBJECTIVES")]
    """The objective; `retrodistill methods` lists them with their papers."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the term in the sum."""
    student_temperature: float = Field(default=0.05, gt=0)
    """Student scores are divided by it. Cosines need about 0.05, a scale of 20. The default of `mi-alpha` is 0.25: at
    0.05, its gradient vanishes at a cosine of about 0.5 to the teacher's embedding."""
    target_std: float = Field(default=1.0, gt=0)
    """Standard deviation that the teacher's lists get, in logits: the teacher's temperature is its measured standard
    deviation divided by this."""
    teacher_temperature: float | None = Field(default=None, gt=0)
    """A fixed temperature instead of the measured one."""
    parts: int = Field(default=2, ge=2)
    """Number of pseudo-classes per class, for `lelp`. A class is the texts that share a relevant document."""
    layers: Literal["uniform", "last"] | dict[int, int] | None = Field(
        default=None,
        exclude_if=lambda given: given is None,
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]+$"}},
    )
    """Layers that `hidden-states`, `attention` and `self-attention-relations` compare: `uniform`, each of the student's
    with the teacher's at the same relative depth; `last`, the last ones; or the teacher's layer for each of the
    student's, e.g. `{1: 2, 3: 6}` (0 is what the first layer gets). By default `uniform`, and `last` for relations."""

    @model_validator(mode="before")
    @classmethod
    def _own_temperature(cls, given: Any) -> Any:
        from retrodistill.objectives.registry import OBJECTIVES, get_objective

        if not isinstance(given, dict) or str(given.get("name")) not in OBJECTIVES:
            return given
        return {"student_temperature": get_objective(given["name"]).student_temperature, **given}

    @property
    def objective(self) -> Objective:
        """Its entry in the registry."""
        from retrodistill.objectives.registry import get_objective

        return get_objective(self.name)


class TrainingSettings(Settings):
    """How long and how fast a stage trains, with AdamW."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training texts."""
    max_steps: int = Field(default=0, ge=0)
    """Stop after this many steps; 0 for no limit."""
    batch_size: int = Field(default=64, ge=1)
    """Texts (or groups) per step and device."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """The peak of the learning rate."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly."""
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    """Course of the learning rate after warmup."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_gradient_norm: float = Field(default=1.0, ge=0)
    """Larger gradients are scaled down to this norm; 0 turns it off, which is better for token tables."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the student's matrix products in training; its weights, the scores, and the loss are float32. `auto`
    is `bfloat16` where a short measurement shows that it is faster."""
    keep: Literal["last", "best"] = "last"
    """The student that a stage ends with: as it is after the `last` step, or as it was when it agreed `best` with the
    teacher on held-out queries, the start included. Agreement does not see sparsity, truncation, codes, or exits."""
    keep_by: Literal["agreement", "ndcg@10"] = Field(default="agreement", exclude_if=lambda given: given == "agreement")
    """What `keep: best` and `patience` compare: `agreement` with the teacher, or `ndcg@10` by the labels of held-out
    training queries."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many measurements without a better one, of about ten in a run; 0 never stops early."""


class LoraSettings(Settings):
    """Adapters of low rank that a stage trains in the place of a transformer's weights (LoRA, arXiv 2106.09685)."""

    rank: int = Field(default=8, ge=1)
    """Rank of what is added to each weight matrix."""
    alpha: float = Field(default=16.0, gt=0)
    """What is added is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are dropped in training."""
    modules: list[str] = Field(default_factory=list)
    """Ends of the names of the linear layers that get adapters, e.g. `[query, value]`; all of each layer by default."""


class GroupSettings(Settings):
    """Groups of a few documents per query, for stages in which documents are encoded with gradients."""

    documents: int = Field(default=8, ge=2)
    """Documents per query."""
    sampler: Annotated[str, OneOf("sampler", "retrodistill.candidates.samplers:SAMPLERS")] = "stratified"
    """How documents are drawn from the list, anew in each epoch. The first document is the query's own (its source or a
    labeled one, where the stage shows it) or else the teacher's best; the sampler draws the others."""
    draws: int = Field(default=1, ge=1)
    """Groups per query and epoch."""
    depth: int = Field(default=100, ge=2)
    """The sampler draws from the teacher's best documents, up to this rank, where the teacher scores any document."""
    random: int = Field(default=0, ge=0)
    """Documents added to each group from the whole corpus, at random (for teachers that score any document at no
    cost)."""


class RegularizerSettings(Settings):
    """A term that keeps a sparse student sparse."""

    name: Annotated[str, OneOf("regularizer", "retrodistill.objectives.registry:REGULARIZERS")]
    """The regularizer; `retrodistill methods` lists them."""
    weight: float = Field(gt=0)
    """Weight of its value in the loss, after warmup."""
    side: Literal["document", "query"] = "document"
    """The side whose term weights it sees."""
    terms: int = Field(default=128, ge=1)
    """Terms per text that `top-k` does not penalize."""
    threshold: int | None = Field(default=None, ge=1, exclude_if=lambda given: given is None)
    """Texts with at most this many terms are not penalized (the l0 mask of OpenSearch's doc-v3 encoders, which have
    200). With `train: head`, the number of terms is estimated from a part of the vocabulary."""
    warmup: float = Field(default=1 / 3, ge=0, le=1)
    """Share of the steps in which the weight grows, with the square of the step."""

    @model_validator(mode="after")
    def _penalizes_terms(self) -> RegularizerSettings:
        if self.name == "anti-zero" and self.threshold is not None:
            raise ValueError("anti-zero keeps short texts from losing terms; threshold is for flops, l1, and top-k")
        return self


Objectives = Annotated[
    list[ObjectiveSettings],
    Field(min_length=1),
    _short_forms("name", str | ObjectiveSettings | list[str | ObjectiveSettings]),
]


class StageSettings(Settings):
    """One stage of training."""

    objectives: Objectives
    """Terms of the loss, which are summed. A name alone takes the defaults: `kl`, `[leaf, kl]`."""
    teacher: Teachers = Field(default_factory=list)
    """Teachers of this stage, one or several; by default the recipe's teacher."""
    start: str | None = None
    """`student:NAME@1`: the stage begins with the transformer weights of that student of the recipe, as they are after
    its first stage (`@0`: before training; without `@`: after its last). The student keeps its own head, and with fewer
    layers takes the first ones. By default, a stage continues with the student's own weights."""
    labels: Annotated[str, OneOf("kind of labels", "retrodistill.rankers.ensemble:LABELS")] = "scores"
    """How the teacher's scores become targets. `bce` needs `sigmoid` (of logits), `cosine`, or `mean` (of recorded
    labels). The targets of several teachers are averaged."""
    train: Literal["query_encoder", "both_encoders", "lexical", "head"] = "query_encoder"
    """The part that is trained. `query_encoder`: queries, against stored document embeddings. `both_encoders`:
    documents are encoded with gradients, too. `lexical`: the lexical half of a hybrid student, on both sides, against
    stored dense halves. `head`: the modules after a frozen transformer, on both sides, against stored hidden states, at
    a fraction of the cost of `both_encoders`."""
    texts: TextSettings = TextSettings()
    """The texts that it trains on."""
    candidates: CandidateSettings = CandidateSettings()
    """The candidates that the teacher scores, for list objectives."""
    selection: SelectionSettings | None = None
    """A selection of the texts to train on; null for all."""
    positives: Literal["source_document", "labels", "all"] = "source_document"
    """The positive of a text, for margin-mse, contrastive and in-batch objectives and `candidates.filter`: the
    `source_document` of a pseudo-query, or the document of the highest grade in the `labels` of the training split.
    With `all`, both. Labeled documents join the candidates."""
    groups: GroupSettings = GroupSettings()
    """How groups are drawn for `both_encoders` and `head`."""
    batches: Literal["shuffled", "topics", "length"] = "shuffled"
    """`topics`: each batch holds texts of one topic, a cluster of their embeddings (TAS-B, arXiv 2104.06967). `length`:
    each holds texts of similar length, so that short texts are not padded to the length of documents; it is for
    `train: query_encoder`, and trains a transformer faster on a mix of texts."""
    topics: int | None = Field(default=None, ge=1)
    """Number of topics; by default, enough that each has about six batches."""
    regularizers: list[RegularizerSettings] = Field(default_factory=list)
    """Terms that keep a sparse student sparse."""
    matryoshka: list[int] = Field(default_factory=list)
    """Numbers of leading dimensions of a dense or static student's vectors on which the loss is also taken."""
    quantize: Literal["int8", "binary"] | None = Field(default=None, exclude_if=lambda given: given is None)
    """Codes of a dense or static student's documents on which the loss is also taken, against float queries. With
    `train: both_encoders`, the student learns documents for these codes (straight through); `binary` is the sign of
    each dimension. With `train: query_encoder`, queries learn to search the stored documents as the codes of
    `index.factory` `SQ8` (int8) or `PQ384x1` (binary, for 384 dimensions) represent them."""
    quantize_weights: Literal["int8"] | None = Field(default=None, exclude_if=lambda given: given is None)
    """Train the matrices of a transformer for an int8 export: the student computes as its int8 graph will, and
    gradients bypass the rounding. For a student whose int8 export finds too few of the same documents."""
    exit_kl: float | None = Field(default=None, ge=0)
    """Weight of the divergence by which the deepest exit teaches the others; 1 by default."""
    exit_weights: dict[int, float] = Field(
        default_factory=dict, json_schema_extra={"propertyNames": {"pattern": "^[0-9]+$"}}
    )
    """Weights of the losses of the exits, by layer; 1 by default."""
    own_tokens: float = Field(default=0.0, ge=0)
    """With `head: vdr`: weight of the objectives on scores in which one side is only the text's own tokens, each of
    weight 1 (the semi-parametric half of VDR's loss, ICLR 2024). Token weights are not learned by it; the student's
    `lexical_terms` does that."""
    lora: LoraSettings | None = Field(default=None, exclude_if=lambda given: given is None)
    """Train adapters of low rank instead of the transformer's weights, with `train: query_encoder` or `both_encoders`:
    optimizer and gradients take little memory, so that a larger model fits a GPU. Heads are trained whole. The adapters
    are merged into the weights at the end of the stage. Rates about ten times as high suit them, such as 2e-4."""
    training: TrainingSettings = TrainingSettings()
    """How long and how fast it trains."""

    @field_validator("start")
    @classmethod
    def _is_student(cls, start: str | None) -> str | None:
        if start is not None:
            parse_student(start)
        return start

    @model_validator(mode="after")
    def _keys_fit(self) -> StageSettings:
        about_candidates = {
            "teacher": bool(self.teacher),
            "labels": self.labels != "scores",
            "selection": self.selection is not None,
            "candidates.budget": self.candidates.budget is not None,
            "candidates.filter": self.candidates.filter is not None,
        }
        key = next((key for key, is_set in about_candidates.items() if is_set), None)
        if key and not self.needs_lists:
            raise ValueError(f"{key} is about candidates, and no objective of this stage sees any; add one such as kl")
        if self.labels != "scores" and self.any_document:
            raise ValueError(
                "labels are made of pairs' scores: set candidates.depth to a number, without candidates.shared, "
                "groups.random or in-batch-margin-mse"
            )
        if self.labels == "scores" and self.needs("labels"):
            raise ValueError("bce learns labels from 0 to 1: set labels: sigmoid (of logits), cosine, or mean")
        if self.reads_labels and not self.reads_positives:
            raise ValueError(
                f"positives: {self.positives} is for margin-mse, lelp, contrastive and in-batch objectives, and "
                "for candidates.filter; add one of them"
            )
        has_positives = self.reads_labels or self.texts.has_pseudo_queries
        if self.candidates.filter is not None and not has_positives:
            raise ValueError(
                "candidates.filter compares with positives, and no text has one: set positives: labels, or texts.titles"
            )
        if self.lora is not None and self.train not in ("query_encoder", "both_encoders"):
            raise ValueError(f"lora adapts a transformer, which train: {self.train} does not train; remove lora")
        if self.quantize is not None and not self.needs_lists:
            raise ValueError("quantize is about documents, and no objective of this stage sees any; add one such as kl")
        if self.batches == "length" and self.train != "query_encoder":
            raise ValueError(f"batches: length is for train: query_encoder, not {self.train}; remove batches")
        if self.topics is not None and self.batches != "topics":
            raise ValueError("topics is for batches: topics; set both, or neither")
        return self

    @model_validator(mode="after")
    def _objectives_fit(self) -> StageSettings:
        if self.texts.joined and self.needs_own_document:
            raise ValueError("texts.joined is of two documents, and a contrastive objective takes one; leave it out")
        of_heads = next((term.name for term in self.objectives if term.objective.needs("student_heads")), None)
        if of_heads is not None and self.lora is not None:
            raise ValueError(f"{of_heads} reads attention heads, which lora wraps; remove one of them")
        if self.matryoshka and self.needs("teacher_widths"):
            raise ValueError("teacher-dropping compares whole embeddings, and matryoshka truncates them; remove one")
        by_labels = next((term.name for term in self.objectives if term.objective.corrects_by_labels), None)
        if by_labels is not None and not self.reads_labels:
            raise ValueError(f"{by_labels} corrects the teacher by labels; set positives: labels")
        of_layers = next((term.name for term in self.objectives if term.objective.sees == "layers"), None)
        if of_layers is not None and self.train not in ("query_encoder", "both_encoders"):
            raise ValueError(
                f"{of_layers} compares layers, which train: {self.train} does not train; set query_encoder or "
                "both_encoders"
            )
        given = [term for term in self.objectives if term.layers is not None]
        wrong = next((term.name for term in given if term.objective.sees != "layers"), None)
        if wrong is not None:
            raise ValueError(f"layers is for objectives that compare layers, which {wrong} does not; remove layers")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> StageSettings:
        if self.quantize_weights and (self.lora is not None or self.train not in ("query_encoder", "both_encoders")):
            raise ValueError(
                "quantize_weights is about the matrices of a transformer that is trained whole; set train: "
                "query_encoder or both_encoders, without lora"
            )
        if self.quantize_weights and self.training.precision != "float32":
            raise ValueError(
                f"quantize_weights rounds to int8, and training.precision: {self.training.precision} rounds otherwise; "
                "leave training.precision at float32"
            )
        return self

    def needs(self, *inputs: str) -> bool:
        """Whether some objective takes one of these inputs, e.g. ``classes``."""
        return any(term.objective.needs(*inputs) for term in self.objectives)

    @property
    def draws_groups(self) -> bool:
        """Whether small groups are drawn from lists, since documents are encoded with gradients or by a head."""
        return self.train in ("both_encoders", "head")

    @property
    def any_document(self) -> bool:
        """Whether the teacher scores any document of the corpus, on one scale: candidates, drawn ones, the batch's."""
        draws = self.candidates.shared > 0 or (self.draws_groups and self.groups.random > 0)
        return self.needs_lists and (self.candidates.depth == "all" or draws or self.needs("batch_targets"))

    @property
    def has_own_teacher(self) -> bool:
        """Whether its targets differ from the scores of the recipe's teacher."""
        return bool(self.teacher) or self.labels != "scores"

    @property
    def is_contrastive(self) -> bool:
        """Whether some objective needs the text's own document in its list."""
        return any(term.objective.needs_positives for term in self.objectives)

    @property
    def reads_positives(self) -> bool:
        """Whether it matters which document of a text is the positive."""
        return self.is_contrastive or self.needs("classes", "positives") or self.candidates.filter is not None

    @property
    def needs_own_document(self) -> bool:
        """Whether a pseudo-query needs the document that it was taken from."""
        return self.is_contrastive and self.positives != "labels"

    @property
    def needs_labels(self) -> bool:
        """Whether it reads judgments of the training queries: as positives, in a selection, or to keep the best."""
        chosen = self.selection
        selects = chosen is not None and chosen.reads_positives and chosen.positives == "labels"
        return self.reads_labels or selects or self.training.keep_by != "agreement"

    @property
    def judges_by_ensemble(self) -> bool:
        """Whether its selection takes what an ensemble ranks first for relevant."""
        chosen = self.selection
        return chosen is not None and chosen.reads_positives and chosen.positives == "ensemble"

    @property
    def reads_labels(self) -> bool:
        """Whether labeled documents are the positives of training queries."""
        return self.positives != "source_document"

    @property
    def needs_lists(self) -> bool:
        """Whether some objective sees candidates."""
        return any(term.objective.needs_lists for term in self.objectives)

    @property
    def list_temperature(self) -> float:
        """By which the first objective that sees lists divides the student's scores; 1 if none does."""
        return next((term.student_temperature for term in self.objectives if term.objective.needs_lists), 1.0)

    @property
    def aligns(self) -> bool:
        """Whether some objective sees the teacher's embeddings, so that texts without candidates teach, too."""
        return any(term.objective.sees == "embeddings" for term in self.objectives)
