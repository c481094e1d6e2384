"""What was scored or encoded once is read from the stores, by a ranker that is loaded anew."""

import numpy as np
import pytest
from sparse_models import splade

from retrodistill.candidates import mine
from retrodistill.core.errors import UserError
from retrodistill.encoders.multi_vector import token_encoder
from retrodistill.rankers import load_ranker, remaining, score

KINDS = ["cross-encoder", "dense", "sparse", "multi-vector"]


@pytest.fixture
def name(tiny_cross_encoder, tiny_model, tmp_path):
    def name(kind):
        folder = str(tmp_path / "model")
        if kind == "sparse":
            splade(tmp_path / "bert").save_pretrained(folder)
        elif kind == "multi-vector":
            token_encoder(tiny_model).save_pretrained(folder)
        return f"{kind}:{({'cross-encoder': tiny_cross_encoder, 'dense': tiny_model}).get(kind, folder)}"

    return name


def computing(monkeypatch, what):
    """Let every forward pass end in `what`."""
    import sentence_transformers as library

    for model, method in (
        (library.CrossEncoder, "predict"),
        (library.SentenceTransformer, "encode"),
        (library.SparseEncoder, "encode"),
        (library.MultiVectorEncoder, "encode"),
    ):
        monkeypatch.setattr(model, method, what)


class TestReuse:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_second_run_scores_no_pair(self, kind, name, tiny, tmp_path, monkeypatch):
        model, pairs = name(kind), mine(tiny, "test", ["bm25"], depth=5)
        first = score(tiny, pairs, [model], store=tmp_path / "store")[0]
        load = load_ranker(model, tmp_path / "store")  # loading a sparse encoder takes one forward pass
        computing(monkeypatch, lambda *_, **__: pytest.fail("computed again"))
        assert remaining(tiny, pairs, [load])[load.name].items == 0
        assert score(tiny, pairs, [load])[0].fingerprint == first.fingerprint

    @pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
    def test_scores_of_pairs_are_those_of_search(self, kind, name, tiny):
        ranker, queries = load_ranker(name(kind)), tiny.split("test")
        found = ranker.search(queries, tiny, 5)
        scored = ranker.score(queries, tiny, found)
        assert scored.scores == pytest.approx(found.scores, rel=1e-5)

    @pytest.mark.parametrize("kind", ["dense", "sparse"])
    def test_scores_of_the_corpus_are_those_of_pairs(self, kind, name, tiny):
        ranker, queries = load_ranker(name(kind)), tiny.split("test")
        found = ranker.search(queries, tiny, 5)
        rows = tiny.documents.positions(found.document_ids)
        scores = ranker.corpus_scores(queries, tiny).of(np.arange(len(queries)))
        places = queries.positions(found.query_ids)[found.query_codes]
        assert scores[places, rows] == pytest.approx(found.scores, rel=1e-5)


class TestWhatARankerCannotDo:
    def test_the_capabilities_say_it_and_the_methods_refuse(self, tiny, tiny_cross_encoder):
        judge, queries = load_ranker(f"cross-encoder:{tiny_cross_encoder}"), tiny.split("test")
        assert (judge.can_search, judge.can_score_pairs, judge.can_score_corpus, judge.is_cheap) == (
            False,
            True,
            False,
            False,
        )
        with pytest.raises(UserError, match="cannot search a corpus"):
            judge.search(queries, tiny, 3)
        with pytest.raises(UserError, match=r"candidates\.depth"):
            judge.corpus_scores(queries, tiny)
        reranker = load_ranker("rerank:bm25@bm25")
        with pytest.raises(UserError, match="cannot score pairs"):
            reranker.score(queries, tiny, reranker.search(queries, tiny, 3))
