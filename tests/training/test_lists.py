import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Texts
from retrodistill.runs import Run
from retrodistill.training.groups import draw_groups
from retrodistill.training.lists import lists_from_run
from retrodistill.training.settings import GroupSettings

TEXTS = Texts.from_pairs([("q0", "a"), ("q1", "b"), ("q2", "c")])
CORPUS = Texts.from_pairs([(f"d{number}", f"x{number}") for number in range(6)])
RUN = Run.from_dict({"q2": {"d5": 1.0, "d0": 3.0}, "q0": {"d1": 0.5, "d2": 2.0, "d3": 1.0}})
SOURCES = np.array([-1, -1, 0])


class TestFromARun:
    def test_lists_follow_the_order_of_the_texts_best_first_and_padded(self):
        lists = lists_from_run(RUN, TEXTS, CORPUS, SOURCES)
        assert lists.documents.tolist() == [[2, 3, 1], [-1, -1, -1], [0, 5, -1]]
        assert lists.scores[0].tolist() == [2.0, 1.0, 0.5]
        assert lists.scores[2, :2].tolist() == [3.0, 1.0]

    def test_a_pseudo_query_hides_its_source(self):
        assert lists_from_run(RUN, TEXTS, CORPUS, SOURCES).hidden.tolist() == [-1, -1, 0]
        shown = lists_from_run(RUN, TEXTS, CORPUS, SOURCES, hide_source=False)
        assert shown.hidden.tolist() == [-1, -1, -1]
        assert shown.positives.tolist() == [-1, -1, 0]

    def test_unknown_ids_are_refused(self):
        with pytest.raises(UserError, match=r"1 document ids are not in the collection"):
            lists_from_run(Run.from_dict({"q0": {"d9": 1.0}}), TEXTS, CORPUS, SOURCES)


def draw(lists, documents, sampler, seed=0, draws=1):
    return draw_groups(lists, GroupSettings(documents=documents, sampler=sampler, draws=draws), seed)


def drawn(groups):
    return groups.documents(np.arange(len(groups)))


class TestGroups:
    def test_each_is_drawn_from_its_own_list_with_its_scores(self):
        groups = draw(lists_from_run(RUN, TEXTS, CORPUS, SOURCES), 2, "random", draws=5)
        assert groups.text_rows.tolist() == [0] * 5  # q1 has no candidate, q2 one besides its source
        known = RUN.to_dict()["q0"]
        for group, values in zip(drawn(groups), groups.batch(np.arange(5)).targets.tolist(), strict=True):
            assert len(set(group)) == 2
            assert [known[f"d{document}"] for document in group] == values

    def test_the_best_comes_first_without_a_document_of_the_text(self):
        documents = drawn(draw(lists_from_run(RUN, TEXTS, CORPUS, SOURCES), 2, "stratified", 3, draws=9))
        assert (documents[:, 0] == 2).all()

    def test_short_lists_are_padded_and_the_own_document_comes_first(self):
        groups = draw(lists_from_run(RUN, TEXTS, CORPUS, np.array([-1, -1, 5]), hide_source=False), 3, "top-k")
        assert groups.text_rows.tolist() == [0, 2]
        assert drawn(groups).tolist() == [[2, 3, 1], [5, 0, -1]]

    def test_the_seed_decides(self):
        lists = lists_from_run(
            Run.from_dict({"q0": {f"d{number}": float(number) for number in range(6)}}), TEXTS, CORPUS, SOURCES
        )
        found = [drawn(draw(lists, 3, "random", seed, draws=4)).tolist() for seed in (0, 0, 1)]
        assert found[0] == found[1] != found[2]

    def test_one_candidate_per_query(self):
        single = lists_from_run(Run.from_dict({"q0": {"d1": 1.0}, "q1": {"d2": 1.0}}), TEXTS, CORPUS, SOURCES)
        with pytest.raises(
            UserError, match=r"^no query has two candidates, and a list objective needs at least two; mine"
        ):
            draw(single, 2, "top-k")
