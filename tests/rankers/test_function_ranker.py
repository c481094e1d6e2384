import sys

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.rankers import FunctionRanker, load_ranker, score
from retrodistill.runs import Run

MODULE = """
from retrodistill.rankers import teacher_function

@teacher_function(version="1")
def overlap(pairs):
    return [len(set(query.split()) & set(document.split())) for query, document in pairs]

def plain(pairs):
    return [0.0 for _ in pairs]
"""


@pytest.fixture
def pairs(tiny):
    return Run.from_dict({query: dict.fromkeys(tiny.documents.ids[:4], 0.0) for query in tiny.queries.ids[:2]})


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_scorers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "function:my_scorers"
    sys.modules.pop("my_scorers", None)


class Counting:
    def __init__(self, value=1.0):
        self.value, self.pairs = value, []

    def __call__(self, pairs):
        self.pairs += pairs
        return [self.value for _ in pairs]


class TestFunction:
    def test_scores_pairs_of_texts(self, tiny, pairs, module):
        [run] = score(tiny, pairs, [f"{module}:overlap"])
        query, document = pairs.query_ids[1], tiny.documents.ids[3]
        shared = set(tiny.queries[query].split()) & set(tiny.documents[document].split())
        assert run.to_dict()[query][document] == len(shared)

    def test_is_called_once_per_pair_and_version(self, tiny, pairs):
        function = Counting()
        for version in ("1", "1", "2"):
            score(tiny, pairs, [FunctionRanker(function, name="mine", version=version)])
        assert len(function.pairs) == 2 * 8

    def test_leaves_out_pairs_of_nan(self, tiny, pairs):
        def only_one(pairs):
            return np.where([document == tiny.documents.texts[0] for _, document in pairs], 1.0, np.nan)

        [run] = score(tiny, pairs, [FunctionRanker(only_one, name="mine", version="1")])
        assert run.to_dict() == {query: {"d0": 1.0} for query in pairs.query_ids}

    def test_that_gives_another_number_of_scores_is_refused(self, tiny, pairs):
        with pytest.raises(UserError, match="8 pairs"):
            score(tiny, pairs, [FunctionRanker(lambda pairs: [1.0], name="mine", version="1")])


class TestName:
    @pytest.mark.parametrize("name", ["no_such_module:f", "my_scorers:no_such_function", "my_scorers:plain"])
    def test_of_nothing_that_was_made_a_teacher_is_refused(self, module, name):
        with pytest.raises(UserError, match="function"):
            load_ranker(f"function:{name}")
