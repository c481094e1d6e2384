from collections import Counter

import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.data.collection import normalized
from retrodistill.data.demo import entries, split_of

pytestmark = pytest.mark.xdist_group("demo")
MODULE = '''
"""Tools for the patient handling of cats. They are used by people who own more cats than is wise to own."""

class Cat:
    """A cat."""

    def purr(self):
        """Return the sound that the cat makes. The sound is low and regular, and may be heard at
        night from the other side of a closed door.

        >>> Cat().purr()
        'a very long printed line of output that is no prose'

        It never raises.
        """

    def hiss(self):
        """Return the sound that the cat makes. When it is angry this is another sound, which is short, sharp and
        sounds like nothing else in the house."""

def echo():
    """Say a thing again and again. To say a thing again and again is what this function does, whatever the thing is."""

def purr_again():
    """Return the sound that the cat makes. The sound is low and regular, and may be heard at
    night from the other side of a closed door. It never raises."""
'''


@pytest.fixture
def made(tmp_path):
    (tmp_path / "cats.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def (")
    return {e.id: e for e in entries({"cats": tmp_path / "cats.py", "broken": tmp_path / "broken.py"})}


class TestEntries:
    def test_the_first_sentence_is_the_query_and_the_rest_the_document(self, made):
        assert made["cats"].query == "Tools for the patient handling of cats."
        assert made["cats"].document == "They are used by people who own more cats than is wise to own."

    def test_doctests_are_not_prose(self, made):
        assert "closed door. It never raises." in made["cats.Cat.purr"].document
        assert "printed" not in made["cats.Cat.purr"].document

    def test_short_strings_and_repeated_documents_are_left_out(self, made):
        assert "cats.Cat" not in made
        assert "cats.purr_again" not in made

    def test_a_summary_that_two_share_is_no_query(self, made):
        assert made["cats.Cat.purr"].query == made["cats.Cat.hiss"].query == ""
        assert made["cats.Cat.hiss"].document.startswith("Return the sound that the cat makes. When")

    def test_a_document_that_holds_its_query_gives_none(self, made):
        assert made["cats.echo"].query == ""
        assert made["cats.echo"].document.startswith("Say a thing again and again. To say")

    def test_a_document_ends_with_the_sentence_that_reaches_64_words(self, tmp_path):
        counted = " ".join(f"Sentence {number} of these has just eight words." for number in range(20))
        (tmp_path / "long.py").write_text(f'"""Have a summary of five words. {counted}"""')
        (entry,) = entries({"long": tmp_path / "long.py"})
        assert len(entry.document.split()) == 64
        assert entry.document.endswith("Sentence 7 of these has just eight words.")


class TestDemo:
    @pytest.fixture(scope="class")
    def demo(self, tmp_path_factory):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RETRODISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
            first = load_collection("demo")
            patch.setattr("retrodistill.data.demo.entries", None)
            assert load_collection("demo").fingerprint == first.fingerprint
            return first

    def test_holds_a_few_thousand_documents_and_about_300_test_queries(self, demo):
        assert 2500 <= len(demo.documents) <= 6000
        assert 200 <= len(demo.split("test")) <= 400
        assert list(demo.qrels) == ["train", "dev", "test"]
        assert demo.split_sizes["train"] > 1000
        assert "unjudged" not in demo.split_sizes
        assert demo.warnings == []

    def test_every_query_has_one_relevant_document_that_does_not_hold_it(self, demo):
        for split, qrels in demo.qrels.items():
            for query, judged in qrels.to_dict().items():
                (document,) = judged
                assert judged == {document: 1}
                assert query == f"q:{document}"
                assert split == split_of(document)
                assert normalized(demo.queries[query]) not in normalized(demo.documents[document])
                assert len(demo.documents[document].split()) >= 12

    def test_texts_stand_once_and_have_no_title(self, demo):
        assert max(Counter(map(normalized, demo.documents.texts)).values()) == 1
        assert max(Counter(map(normalized, demo.queries.texts)).values()) == 1
        assert set(demo.titles.texts) == {""}

    def test_nothing_comes_from_tests_or_toys(self, demo):
        tops = {id_.partition(".")[0] for id_ in demo.documents.ids}
        assert not tops & {"test", "idlelib", "tkinter", "turtledemo", "lib2to3", "antigravity", "this"}
        assert tops >= {"argparse", "json", "pathlib"}

    def test_no_leak(self, demo):
        from retrodistill.data import leaks

        assert leaks(demo, rule="exact") == []


def test_a_python_without_sources_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("retrodistill.data.demo.sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path} holds none"):
        load_collection("demo")
