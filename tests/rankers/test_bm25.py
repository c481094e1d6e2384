import subprocess
import sys

import numpy as np
import pytest
import Stemmer

from retrodistill.data import Texts
from retrodistill.rankers import bm25
from retrodistill.rankers.bm25 import BM25, load_bm25s

bm25s = load_bm25s()

DOCUMENTS = {"a": "stars and planets", "b": "", "c": "a planet orbiting the star", "d": "bread, cheese", "e": "of the"}


@pytest.fixture
def ranker():
    return BM25(Texts.from_pairs(DOCUMENTS.items()))


class TestScores:
    @pytest.mark.parametrize("block", [2, 100])
    def test_they_are_those_of_bm25s(self, ranker, block, monkeypatch):
        monkeypatch.setattr(bm25, "_BLOCK", block)
        options = {"stopwords": "english", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
        direct = bm25s.BM25()
        direct.index(bm25s.tokenize(list(DOCUMENTS.values()), **options), show_progress=False)
        for query in ("planets orbit", "bread", "stars stars cheese"):
            terms = bm25s.tokenize([query], return_ids=False, **options)[0]
            np.testing.assert_array_equal(next(ranker.scores([query])), direct.get_scores(terms))

    @pytest.mark.parametrize("query", ["", "of the", "zebra unicorn", "?!"])
    def test_a_query_without_known_words_scores_nothing(self, ranker, query):
        assert not next(ranker.scores([query])).any()
        rows, scores = ranker.search([query], 3)
        assert (rows == -1).all()
        assert (scores == 0).all()

    def test_scripts_without_spaces_are_pairs_of_characters(self):
        texts = {
            "zh": "北京是中华人民共和国的首都。",
            "ja": "心臓の薬",
            "th": "หัวใจของฉัน",
            "mixed": "the 熊猫 star",
            "é": "café",
        }
        ranker = BM25(Texts.from_pairs(texts.items()))
        for query, wanted in (("中华人民", 0), ("薬の心臓", 1), ("หัวใจ", 2), ("大熊猫", 3), ("stars", 3), ("café", 4)):
            rows = ranker.search([query], 5)[0][0]
            assert rows[rows >= 0].tolist() == [wanted]

    def test_unknown_words_beside_known_ones_change_nothing(self, ranker):
        np.testing.assert_array_equal(next(ranker.scores(["bread zebra"])), next(ranker.scores(["bread"])))

    def test_a_document_without_text_is_never_found(self, ranker):
        rows, _ = ranker.search(["stars planets bread"], 5)
        assert sorted(rows[0][rows[0] >= 0]) == [0, 2, 3]

    def test_a_corpus_without_any_term(self):
        ranker = BM25(Texts.from_pairs([("a", ""), ("b", "the of")]))
        assert (ranker.search(["star"], 2)[0] == -1).all()

    def test_k_is_cut_to_the_corpus(self, ranker):
        assert ranker.search(["star"], 99)[0].shape == (1, 5)


class TestTheStoredIndex:
    def test_it_is_built_once(self, ranker, monkeypatch):
        ranker.search(["star"], 1)
        monkeypatch.setattr(bm25, "_indexed", lambda *_: pytest.fail("built twice"))
        again = BM25(Texts.from_pairs(DOCUMENTS.items()))
        np.testing.assert_array_equal(next(again.scores(["star"])), next(ranker.scores(["star"])))

    def test_another_corpus_has_its_own(self, ranker):
        other = BM25(Texts.from_pairs([*DOCUMENTS.items(), ("f", "star")]))
        assert other.fingerprint != ranker.fingerprint
        assert len(next(other.scores(["star"]))) == 6

    def test_one_that_was_cut_is_named_and_built_again(self, ranker, tmp_path, capsys):
        wanted = ranker.search(["star"], 1)
        (data,) = (tmp_path / "cache" / "bm25").rglob("data.csc.index.npy")
        data.write_bytes(data.read_bytes()[:50])
        found = BM25(Texts.from_pairs(DOCUMENTS.items())).search(["star"], 1)
        assert f"{data} is damaged" in capsys.readouterr().err
        np.testing.assert_array_equal(found, wanted)


class TestImport:
    """bm25s starts JAX where it is installed, and JAX takes three quarters of a GPU's memory."""

    CODE = (
        "import sys; {first}from retrodistill.data import Texts; from retrodistill.rankers.bm25 import BM25\n"
        "print(BM25(Texts.from_pairs([('a', 'a star')])).search(['star'], 1)[0][0][0], 'jax.lax' in sys.modules, "
        "'jax' in sys.modules)"
    )

    def printed(self, tmp_path, monkeypatch, first=""):
        (tmp_path / "jax").mkdir()
        (tmp_path / "jax" / "__init__.py").write_text("")
        (tmp_path / "jax" / "lax.py").write_text("raise SystemExit('JAX was started')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        code = self.CODE.format(first=first)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    def test_it_leaves_jax_alone(self, tmp_path, monkeypatch):
        assert self.printed(tmp_path, monkeypatch) == ["0", "False", "False"]

    def test_a_program_that_uses_jax_keeps_it(self, tmp_path, monkeypatch):
        assert self.printed(tmp_path, monkeypatch, first="import jax; ") == ["0", "False", "True"]
