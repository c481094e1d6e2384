"""A kind of ranker is one class and one line of the table of kinds: here a teacher behind an API."""

import numpy as np

from retrodistill.encoders.names import MODEL_KINDS, ModelKind
from retrodistill.rankers import load_ranker, score
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs import Run


class LengthApi(Ranker):
    """Scores a pair by the length of its document."""

    can_score_pairs = True

    def __init__(self, name):
        self.name = f"api:{name}"

    def fingerprint(self, collection):
        return f"{self.name}-1"

    def score(self, queries, collection, pairs):
        lengths = [len(collection.documents[document]) for document in pairs.document_ids]
        return pairs.with_scores(np.array(lengths, dtype=np.float64), self.name)


def test_its_line_in_the_table_opens_it_everywhere(tiny, monkeypatch):
    line = ModelKind("an API", can_search=False, ranker=f"{__name__}:LengthApi")
    monkeypatch.setitem(MODEL_KINDS, "api", line)
    monkeypatch.setattr("retrodistill.encoders.names.KINDS", {"api": "an API"})
    pairs = Run.from_dict({"q0": {"d0": 1.0, "d1": 0.5}})
    (scored,) = score(tiny, pairs, ["api:length"])
    assert scored.to_dict() == {"q0": {name: float(len(tiny.documents[name])) for name in ("d0", "d1")}}
    assert load_ranker("api:length", needs="score").name == "api:length"
