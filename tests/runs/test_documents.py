"""Runs over passages as runs over documents."""

import numpy as np
import pyarrow as pa
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data.parents import Parents, PassageSettings
from retrodistill.runs.documents import best_documents, by_document, in_blocks
from retrodistill.runs.run import Run

RUN = Run.from_dict({"q": {"a#1": 3.0, "b#2": 5.0, "a#2": 4.0, "b#1": 1.0, "c#1": 2.0}, "r": {"c#1": 1.0}}, "passages")
SIZES = {"a": 2, "b": 3, "c": 1}


@pytest.fixture
def parents() -> Parents:
    rows = np.repeat(np.arange(3, dtype=np.int32), list(SIZES.values()))
    return Parents(pa.array(list(SIZES)), rows, PassageSettings())


class TestAggregation:
    def test_a_document_has_the_score_of_its_best_passage(self):
        assert by_document(RUN).to_dict() == {"q": {"b": 5.0, "a": 4.0, "c": 2.0}, "r": {"c": 1.0}}

    def test_the_best_passage_is_named(self):
        table = by_document(RUN).table
        assert table["passage_id"].to_pylist() == ["b#2", "a#2", "c#1", "c#1"]

    def test_the_mean_of_the_best_takes_the_lowest_for_passages_that_were_not_found(self, parents):
        # b has three passages, of which the third was not found; c has one
        means = {"a": 3.5, "b": (5.0 + 1.0 + 1.0) / 3, "c": 2.0}
        assert by_document(RUN, "mean@3", parents).to_dict()["q"] == pytest.approx(means)

    def test_the_mean_of_one_is_the_best(self, parents):
        assert by_document(RUN, "mean@1", parents).to_dict() == by_document(RUN).to_dict()

    def test_it_is_brute_force(self, parents):
        generator = np.random.default_rng(0)
        ids = [f"{name}#{number + 1}" for name, size in SIZES.items() for number in range(size)]
        run = Run.from_dict({f"q{row}": dict(zip(ids, generator.random(6).tolist(), strict=True)) for row in range(20)})
        for query, scores in by_document(run, "mean@2", parents).to_dict().items():
            own = run.to_dict()[query]
            for name, score in scores.items():
                best = sorted((own[id_] for id_ in ids if id_.startswith(name)), reverse=True)[:2]
                assert score == pytest.approx(np.mean(best))

    def test_the_mean_needs_the_number_of_passages(self):
        with pytest.raises(UserError, match="mean@2"):
            by_document(RUN, "mean@2")

    def test_an_empty_run_stays_empty(self):
        assert len(by_document(Run.from_dict({}))) == 0


class TestDepth:
    @staticmethod
    def searched(scores: np.ndarray, names: list[str], depths: list[int]):
        def search(depth: int) -> Run:
            depths.append(depth)
            rows = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
            return Run.from_matrix(["q", "r"], names, rows, np.take_along_axis(scores, rows, axis=1))

        return search

    def test_it_grows_until_enough_documents_are_found(self):
        names = [f"a#{number}" for number in range(1, 91)] + [f"d{number}#1" for number in range(10)]
        scores = np.tile(np.linspace(1, 0, 100), (2, 1))  # all of a's passages come first
        scores[1] = scores[1, ::-1]
        depths: list[int] = []
        run = best_documents(self.searched(scores, names, depths), 3, 100, 11, by_document)
        assert run.to_dict()["q"].keys() == {"a", "d0", "d1"}
        assert run.to_dict()["r"].keys() == {"d9", "d8", "d7"}
        assert depths == [55, 100]

    def test_no_more_documents_than_there_are(self):
        names = ["a#1", "a#2", "b#1"]
        run = best_documents(self.searched(np.ones((2, 3)), names, []), 10, 3, 2, by_document)
        assert [len(documents) for _, documents, _ in run] == [2, 2]

    def test_it_stops_where_nothing_more_is_found(self):
        depths: list[int] = []

        def search(depth: int) -> Run:
            depths.append(depth)
            return Run.from_dict({"q": {"a#1": 1.0}})

        assert len(best_documents(search, 5, 1000, 100, by_document)) == 1
        assert len(depths) == 1

    def test_many_queries_are_searched_in_blocks(self, monkeypatch):
        monkeypatch.setattr("retrodistill.runs.documents._ROWS", 40)
        blocks = []

        def search(rows: slice) -> Run:
            blocks.append(range(*rows.indices(5)))
            return Run.from_dict({f"q{row}": {f"d{row}": 1.0} for row in blocks[-1]})

        run = in_blocks(search, 5, 10)
        assert [list(block) for block in blocks] == [[0, 1], [2, 3], [4]]
        assert run.to_dict() == {f"q{row}": {f"d{row}": 1.0} for row in range(5)}
        assert run.query_ids == [f"q{row}" for row in range(5)]
