import pytest

from retrodistill.data import Collection
from retrodistill.data.survey import language_shares, survey


@pytest.fixture
def collection():
    documents = {
        "d0": ("Whales", "Whales are large animals that live in the sea and sing to each other at night."),
        "d1": ("", "The moon turns around the earth in about a month and shows us one side only."),
        "d2": ("", "The moon turns around the earth in about a month and shows us one side only."),
        "d3": ("", " "),
    }
    queries = {"q0": "what do whales sing", "q1": "what do whales sing at", "q2": "side of the moon", "q3": "a log"}
    return Collection.from_parts(
        "made", documents, queries, {"test": {"q0": {"d0": 1}}, "train": {"q1": {"d0": 1}, "q2": {"d1": 1}}}
    )


class TestSurvey:
    def test_documents(self, collection):
        found = survey(collection)
        assert (found.documents, found.blank, found.copies, found.titled) == (4, 1, 1, 0.25)
        assert found.words["max"] == 17  # with the title
        assert found.language == "en"

    def test_queries_by_split(self, collection):
        found = survey(collection)
        assert found.splits == {"test": {"queries": 1, "judgments": 1}, "train": {"queries": 2, "judgments": 2}}
        assert (found.queries, found.unjudged, found.training_queries) == (4, 1, 2)
        assert found.near_test == 1  # q1

    def test_documents_alone(self):
        found = survey(Collection.from_parts("made", {"d0": "The moon is far away."}, {}, {}))
        assert (found.queries, found.splits, found.query_words, found.near_test) == (0, {}, 0.0, 0)
        assert [line.partition(":")[0] for line in found.missing()] == ["no queries", "no judgments"]

    def test_a_test_split_that_is_small_or_has_another_name(self, collection):
        assert survey(collection).missing()[0].startswith("1 test queries")
        dev = Collection.from_parts("made", {"d0": "The moon is far."}, {"q0": "moon"}, {"dev": {"q0": {"d0": 1}}})
        assert any("split.test" in line and "dev" in line for line in survey(dev).missing())


def test_language_shares():
    assert language_shares({"de": 3, "en": 1}) == "de 75%, en 25%"
    assert language_shares({}) == "?"
