import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.vectors import check_finite, exact_search, pair_products
from retrodistill.rankers import Ranker, load_ranker
from retrodistill.rankers.bi_encoder import DenseRanker
from retrodistill.rankers.protocol import as_queries, check_k, check_queries
from retrodistill.rankers.recorded import RecordedRanker
from retrodistill.runs import Run, write_run


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    return generator.standard_normal((7, 16)).astype("f4"), generator.standard_normal((50, 16)).astype("f4")


class TestExactSearch:
    def test_it_is_a_sorted_product(self, vectors):
        queries, documents = vectors
        rows, scores = exact_search(queries, documents, 10)
        products = queries @ documents.T
        np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :10])
        np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :10], rtol=1e-5)

    def test_more_than_there_are_gives_all(self, vectors):
        queries, documents = vectors
        assert exact_search(queries, documents, 99)[0].shape == (7, 50)

    def test_pairs_are_the_entries_of_the_product(self, vectors, monkeypatch):
        queries, documents = vectors
        q, d = np.array([0, 3, 6, 3]), np.array([49, 0, 7, 7])
        np.testing.assert_allclose(
            pair_products(queries, documents, q, d), (queries @ documents.T)[q, d], rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_documents_that_are_not_finite_are_named(self, vectors, bad):
        documents = vectors[1]
        documents[[3, 8], 2] = bad
        with pytest.raises(UserError, match=r"^model x: 2 vectors are NaN or infinite \('d3', 'd8'\); "):
            check_finite(documents, [f"d{row}" for row in range(50)], "model x")


class TestRetrieving:
    def test_dense_is_exact_search_of_encodings(self, tiny, tiny_model):
        encoder = load_encoder(f"dense:{tiny_model}")
        run = load_ranker(encoder).search(tiny.split("test"), tiny, 5)
        products = (
            encoder.encode(tiny.split("test").texts, "query") @ encoder.encode(tiny.documents.texts, "document").T
        )
        for (_, found, scores), row in zip(run, products, strict=True):
            np.testing.assert_allclose(scores, -np.sort(-row)[:5], atol=1e-5)
            np.testing.assert_allclose(row[tiny.documents.positions(found)], scores, atol=1e-5)

    def test_bm25_gives_no_document_without_a_shared_term(self, tiny):
        for query, documents, scores in load_ranker("bm25").search(tiny.split("test"), tiny, 60):
            words = set(tiny.queries[query].split())
            assert (scores > 0).all()
            assert all(words & set(tiny.documents[document].replace(".", "").split()) for document in documents)

    def test_a_recorded_run_is_cut_and_has_only_its_queries(self, tiny, tmp_path):
        run = Run.from_dict({"q0": {"d1": 1.0, "d2": 3.0, "d3": 2.0}})
        write_run(run, tmp_path / "a.run")
        for source in (run, f"run:{tmp_path / 'a.run'}"):
            found = load_ranker(source).search(tiny.split("train"), tiny, 2)
            assert found.to_dict() == {"q0": {"d2": 3.0, "d3": 2.0}}

    def test_a_recorded_run_with_unknown_ids(self, tiny):
        with pytest.raises(UserError, match=r"lacks 1 documents \('nowhere'\)"):
            RecordedRanker(Run.from_dict({"q0": {"nowhere": 1.0}})).search(tiny.split("train"), tiny, 2)

    def test_a_recorded_run_cannot_be_timed(self, tiny):
        with pytest.raises(UserError, match=r"has no latency"):
            RecordedRanker(Run.from_dict({"q0": {"d0": 1.0}})).query_fn(tiny, 2)

    def test_responders_answer_as_the_retriever_does(self, tiny, tiny_model):
        query = tiny.split("test").texts[0]
        dense, lexical = load_ranker(f"dense:{tiny_model}"), load_ranker("bm25")
        first = next(iter(dense.search(tiny.split("test"), tiny, 3)))
        assert [tiny.documents.ids[row] for row in dense.query_fn(tiny, 3)(query)[0][0]] == list(first[1])
        first = next(iter(lexical.search(tiny.split("test"), tiny, 3)))
        np.testing.assert_allclose(lexical.query_fn(tiny, 3)(query)[1][0], first[2], rtol=1e-6)

    def test_dense_vectors_cost_four_bytes_a_dimension(self, tiny, tiny_model):
        assert load_ranker(f"dense:{tiny_model}").bytes_per_document(tiny) == 128
        assert load_ranker("bm25").bytes_per_document(tiny) > 0


class TestLoading:
    @pytest.mark.parametrize("kind", ["bm25", "dense", "static"])
    def test_each_kind_is_a_retriever(self, kind, tiny_model, tiny_static):
        name = {"bm25": "bm25", "dense": f"dense:{tiny_model}", "static": f"static:{tiny_static}"}[kind]
        assert isinstance(load_ranker(name), Ranker)
        assert load_ranker(name).name == name

    def test_a_cross_encoder_cannot_search(self):
        with pytest.raises(UserError, match=r"^model cross-encoder:x scores pairs and cannot search a corpus; use"):
            load_ranker("cross-encoder:x", needs="search")

    def test_objects_are_retrievers(self, tiny_model):
        assert isinstance(load_ranker(load_bi_encoder(tiny_model)), DenseRanker)


class TestSpaces:
    def test_queries_of_another_space_are_refused(self, tiny_model, tiny_static):
        documents, queries = load_encoder(f"dense:{tiny_model}"), load_encoder(f"static:{tiny_static}")
        with pytest.raises(
            UserError,
            match=r"do not belong among .*other weights; other modules; max_length None, expected 64",
        ):
            DenseRanker(documents, queries)

    def test_queries_of_another_width_are_refused(self, tiny_model):
        from retrodistill.students import dense_student

        documents, queries = load_encoder(f"dense:{tiny_model}"), load_encoder(dense_student(tiny_model, dimension=8))
        with pytest.raises(
            UserError, match=r"have 8 dimensions, the documents by .* have 32; use the encoder that made"
        ):
            DenseRanker(documents, queries)


class TestChecks:
    @pytest.mark.parametrize("k", [0, -1, 61])
    def test_k_beyond_the_corpus(self, k):
        with pytest.raises(UserError, match=rf"^k={k}: the corpus has 60 documents; choose k from 1 to 60.$"):
            check_k(k, 60)

    def test_the_empty_query_is_named_by_its_place(self):
        with pytest.raises(UserError, match=r"^query 2 of 3 is empty; a query needs at least one word.$"):
            check_queries(["a", " \n", "c"])


class TestQueriesAsTheyAreGiven:
    def test_a_mapping_names_its_queries(self):
        asked = as_queries({"a": "star", "b": "planet"})
        assert (asked.ids, asked.texts) == (["a", "b"], ["star", "planet"])

    @pytest.mark.parametrize("given", [{"a": 3}, ["star", None]])
    def test_what_is_no_text_is_refused(self, given):
        with pytest.raises(UserError, match=r"^query .* is .*; give texts, or a mapping of ids to texts\.$"):
            as_queries(given)
