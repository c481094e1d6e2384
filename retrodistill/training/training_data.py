"""What all stages of a student share: values only. `retrodistill.training.scoring` mines and scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection, Qrels
from retrodistill.data.conversations import with_rewrites
from retrodistill.data.texts import Texts
from retrodistill.encoders.encoder import Encoder
from retrodistill.rankers.protocol import Ranker
from retrodistill.training.snapshot import StudentSnapshot


@dataclass(frozen=True)
class TrainingData:
    """What all stages of one student share.

    Attributes:
        collection: The corpus.
        queries: Training queries; possibly none.
        teacher: Scores the lists. A recipe puts a stage's own teacher here before the stage is trained.
        space: The dense encoder whose vectors the student aligns to (LEAF) and whose documents it searches; None
            where there is none.
        folder: Folder for intermediate results.
        seed: Of the sampling of texts.
        own_documents: The student encodes its own documents, and is not trained against those of the space.
        excluded_queries: Queries that must not be trained on, by text: pseudo-queries that equal one are left out.
        stored: (corpus, d) vectors that query encoders are trained against in place of the space's, e.g. those that
            the codes of a quantized index decode to.
        rewrites: Better queries by the ids of queries: the teacher gets these, the student the queries themselves.
        labels: Judgments of the training queries.
        labeler: Says what is right where a stage selects by an ensemble.
        student: The student when a stage begins; None before.
    """

    collection: Collection
    queries: Texts
    teacher: Ranker
    space: Encoder | None
    folder: Path
    seed: int = 0
    own_documents: bool = False
    excluded_queries: Texts | None = None
    stored: np.ndarray | None = None
    rewrites: Texts | None = None
    labels: Qrels | None = None
    labeler: Ranker | None = None
    student: StudentSnapshot | None = None

    def teacher_queries(self, texts: Texts) -> Texts:
        """The texts as the teacher gets them: rewrites where there are any, under the same ids."""
        return texts if self.rewrites is None else with_rewrites(texts, self.rewrites)

    def qrels(self) -> Qrels:
        """Judgments of the training queries.

        Raises:
            UserError: There are none.
        """
        if self.labels is None or not len(self.labels):
            raise UserError(
                "the training queries have no labels; take positives: source_document, or positives: ensemble."
            )
        return self.labels
