import faiss
import numpy as np
import pytest
from records_of import IDS, dense, multi_vector, space, sparse
from scipy.sparse import csr_array

from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports import records as module
from retrodistill.exports import records_from, vector_records
from retrodistill.exports.records import exact_search, score_matrix
from retrodistill.indexes import FaissIndex, build_index
from retrodistill.indexes.inverted import InvertedIndex, InvertedSettings
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings


@pytest.fixture
def teacher(tiny_model):
    return load_encoder(f"dense:{tiny_model}")


def whole(records):
    return np.concatenate([batch.vectors for batch in records.batches()])


class TestFaissIndexes:
    @pytest.mark.parametrize("factory", ["Flat", "HNSW8,Flat", "IVF4,Flat", "SQ8,RFlat"])
    def test_vectors_that_are_held_are_taken(self, tiny, teacher, factory):
        index = build_index(tiny, teacher, factory=factory)
        vectors = teacher.encode(tiny.documents.texts, "document")
        index.add_vectors(["one more"], vectors[:1] * -1)
        if factory in ("Flat", "IVF4,Flat"):
            index.remove(["d3"])
            vectors = np.delete(vectors, 3, axis=0)
        before = faiss.serialize_index(index.index)
        records = records_from(index)  # no collection: nothing is embedded
        np.testing.assert_allclose(whole(records), [*vectors, -vectors[0]], atol=1e-6)
        assert records.ids == index.ids
        np.testing.assert_array_equal(faiss.serialize_index(index.index), before)

    @pytest.mark.parametrize("factory", ["SQ8", "RR8,Flat", "IVF2,SQ8"])
    def test_codes_are_not_documents_are_embedded_again(self, factory):
        filled = _filled(factory, np.random.default_rng(0).normal(size=(30, 8)))
        index = FaissIndex(filled, [str(row) for row in range(30)], space(8, "dot"), factory=factory)
        with pytest.raises(UserError, match=f"{factory}\\) holds codes, not vectors; give the collection"):
            records_from(index)

    def test_embedded_again_and_cut_as_the_index_cuts(self, tiny, teacher):
        index = build_index(tiny, teacher, factory="SQ8", truncate=8)
        vectors = teacher.encode(tiny.documents.texts, "document")[:, :8]
        np.testing.assert_allclose(
            whole(records_from(index, tiny)), vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-6
        )

    def test_only_the_index_own_documents(self, tiny, teacher):
        small = Collection.from_parts("small", dict(list(tiny.documents.items())[:20]), {}, {})
        index = build_index(small, teacher, factory="SQ8")
        assert len(records_from(index, tiny)) == 20
        with pytest.raises(UserError, match="the collection lacks 40 documents of the index"):
            records_from(build_index(tiny, teacher, factory="SQ8"), small)

    @pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
    def test_a_folder(self, tiny, teacher, tmp_path, factory):
        index = build_index(tiny, teacher, factory=factory)
        index.save(tmp_path / "index")
        records = records_from(tmp_path / "index")  # nothing else refers to the loaded index
        np.testing.assert_array_equal(whole(records), whole(records_from(index)))
        assert records.fingerprint == records_from(index).fingerprint
        assert records.queries_by == teacher.name


class TestEncoders:
    def test_an_encoder_s_name(self, tiny, tiny_model, teacher):
        records = records_from(f"dense:{tiny_model}", tiny)
        np.testing.assert_allclose(whole(records), teacher.encode(tiny.documents.texts, "document"), atol=1e-6)
        assert records.space.fingerprint == teacher.document_space

    def test_without_documents(self, teacher):
        with pytest.raises(UserError, match="has no documents of its own to export; give a collection"):
            records_from(teacher)

    def test_something_else(self):
        with pytest.raises(UserError, match="a int cannot be exported"):
            records_from(3)


class TestOtherIndexes:
    def test_impacts_as_the_index_scores_them(self):
        _, rows = sparse()
        index = InvertedIndex.from_csr(IDS, rows, space(30, "dot"), settings=InvertedSettings(bits=None))
        records = records_from(index)
        np.testing.assert_array_equal(records.block(0, 40).toarray(), rows.toarray())
        coded = records_from(InvertedIndex.from_csr(IDS, rows, space(30, "dot"), settings=InvertedSettings(bits=8)))
        assert coded.fingerprint != records.fingerprint
        np.testing.assert_allclose(coded.block(0, 40).toarray(), rows.toarray(), atol=rows.max() / 15)

    def test_token_stores(self):
        tokens = Tokens.of([np.random.default_rng(row).normal(size=(1 + row % 5, 4)) for row in range(40)], 4)
        settings = MultiVectorSettings(codec="float32")
        records = records_from(MultiVectorIndex.from_tokens(tokens, IDS, space(4, "maxsim"), settings=settings))
        np.testing.assert_array_equal(records.block(5, 9).vectors, tokens.slice(5, 9).vectors)
        assert records.fingerprint == vector_records(IDS, tokens, space(4, "maxsim")).fingerprint


class TestRecords:
    def test_fingerprints_tell_ids_and_numbers_apart(self):
        vectors = dense()[1]
        first = vector_records(IDS, vectors, space(6, "dot")).fingerprint
        assert vector_records(IDS, vectors.copy(), space(6, "dot")).fingerprint == first
        assert vector_records([*IDS[1:], IDS[0]], vectors, space(6, "dot")).fingerprint != first
        assert vector_records(IDS, vectors[::-1], space(6, "dot")).fingerprint != first

    def test_fingerprints_tell_bounds_and_entries_apart(self):
        vectors = np.ones((4, 2), dtype=np.float32)
        one, other = ([0, 1, 4], [0, 2, 4])
        assert len({vector_records(["a", "b"], Tokens(vectors, np.array(at)), space(2, "maxsim")).fingerprint
                    for at in (one, other)}) == 2  # fmt: skip
        rows = [csr_array(np.array([[1.0, 0], [0, 1]])), csr_array(np.array([[0.0, 1], [1, 0]]))]
        assert len({vector_records(["a", "b"], row, space(2, "dot")).fingerprint for row in rows}) == 2

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_numbers_that_are_none(self, bad):
        vectors = dense()[1]
        vectors[7, 2] = bad
        with pytest.raises(UserError, match="NaN or infinite"):
            vector_records(IDS, vectors, space(6, "dot"))

    def test_shapes_that_do_not_fit(self):
        with pytest.raises(UserError, match="40 ids and a space of 5 dimensions with 40 documents of 6"):
            vector_records(IDS, dense()[1], space(5, "dot"))
        with pytest.raises(UserError, match="bounds of 1 documents do not fit 4 token vectors"):
            vector_records(["a"], Tokens(np.ones((4, 2), np.float32), np.array([0, 3])), space(2, "maxsim"))
        with pytest.raises(UserError, match="document id 'a' appears more than once"):
            vector_records(["a", "b", "a"], np.ones((3, 6), np.float32), space(6, "dot"))
        with pytest.raises(UserError, match="holds no documents"):
            vector_records([], np.zeros((0, 6), np.float32), space(6, "dot"))


class TestAgreement:
    def test_max_sim_is_the_sum_of_the_best(self):
        tokens = multi_vector()[1]
        scores = score_matrix(tokens, tokens)
        for query, document in ((0, 1), (5, 5), (39, 2)):
            assert scores[query, document] == pytest.approx(
                (tokens[query] @ tokens[document].T).max(axis=1).sum(), rel=1e-5
            )
        assert np.isneginf(scores[:, 3]).all()

    def test_exact_search_against_brute_force(self, monkeypatch):
        monkeypatch.setitem(module._BATCH, "dense", 7)  # over several blocks
        records, vectors = dense()
        answers = exact_search(((batch.ids, batch.vectors) for batch in records.batches()), vectors, 10)
        best = np.argsort(-(vectors @ vectors.T), axis=1)[:, :10]
        assert [[document for document, _ in pairs] for pairs in answers] == [
            [IDS[row] for row in rows] for rows in best
        ]

    def test_sparse_documents_without_a_common_entry_are_not_found(self):
        rows = csr_array(np.array([[1.0, 0, 0], [2, 0, 0], [0, 1, 0]], dtype=np.float32))
        answers = exact_search([(["a", "b", "c"], rows)], rows, 3)
        assert answers == [[("b", 2), ("a", 1)], [("b", 4), ("a", 2)], [("c", 1)]]


def _filled(factory, vectors):
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.astype(np.float32))
    index.add(vectors.astype(np.float32))
    return index
