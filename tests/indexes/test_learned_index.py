from dataclasses import replace

import numpy as np
import pytest

from retrodistill.core.faiss import faiss
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.indexes.learned import _rescaled, learn_index, texts_to_learn_from
from retrodistill.quantizers import QuantizerSettings
from retrodistill.quantizers.codes import reconstructed
from retrodistill.rankers.corpus import Products

QUICK = QuantizerSettings(steps=6, evaluations=2, start_iterations=1, batch_size=8, depth=3, sampled=10)


def learned_bytes(collection, encoder, teacher=None):
    texts = texts_to_learn_from(collection)
    scores = teacher and teacher(texts)
    learned = learn_index(collection, encoder, texts, target="OPQ4,PQ4x4", settings=QUICK, teacher=scores)
    return faiss.serialize_index(learned.index.index).tobytes()


@pytest.mark.parametrize("is_taught", [False, True])
def test_vectors_from_the_store_give_the_index_of_vectors_in_memory(tiny, tiny_model, monkeypatch, is_taught):
    encoder = load_encoder(f"dense:{tiny_model}")
    documents = embed(encoder, tiny.documents.column, "document")

    def teacher(texts):
        return Products(embed(encoder, texts.texts.texts, "query")[:, ::-1], documents)

    monkeypatch.setattr("retrodistill.quantizers.learning.MOST_HELD", 25)
    given = tiny, encoder, teacher if is_taught else None
    in_memory = learned_bytes(*given)
    monkeypatch.setattr("retrodistill.indexes.learned.MOST_HELD", 25)
    monkeypatch.setattr("retrodistill.indexes.learned.embed", only_queries)
    assert learned_bytes(*given) == in_memory


def only_queries(encoder, texts, role):
    assert role == "query"
    return embed(encoder, texts, role)


@pytest.mark.parametrize("most_held", [100, 10])
def test_a_teachers_scores_get_mean_and_deviation_of_dense_ones(monkeypatch, most_held):
    generator = np.random.default_rng(0)
    queries, documents, others = (generator.normal(size=(size, 8)).astype(np.float32) for size in (5, 50, 50))
    monkeypatch.setattr("retrodistill.indexes.learned.MOST_HELD", most_held)
    monkeypatch.setattr("retrodistill.rankers.corpus.REFERENCE", 20)
    scores, rows, columns = Products(queries, others), np.array([4, 1]), np.array([3, 30, 31])
    sample = np.arange(50) if most_held == 100 else scores.reference()
    dense, better = queries[rows] @ documents[sample].T, queries[rows] @ others[sample].T
    wanted = queries[rows] @ others[columns].T
    wanted = (wanted - better.mean(1, keepdims=True)) / better.std(1, keepdims=True)
    wanted = wanted * dense.std(1, keepdims=True) + dense.mean(1, keepdims=True)
    np.testing.assert_allclose(_rescaled(scores, queries, documents)(rows, columns), wanted, rtol=1e-4, atol=1e-5)


def test_added_documents_get_the_bits_that_fit_them_best(tiny, tiny_model):
    encoder = load_encoder(f"dense:{tiny_model}")
    later = tiny.documents.ids[-12:]
    first = replace(tiny, documents=tiny.documents.select(tiny.documents.ids[:-12]))
    texts = texts_to_learn_from(first)
    learned, plain = (learn_index(first, encoder, texts, target="ITQ32,PQ32x1", settings=QUICK).index for _ in range(2))
    learned.add(tiny.documents.select(later))
    vectors = embed(encoder, tiny.documents.column, "document")
    plain.index.add(vectors[-12:])
    errors = [np.square(vectors - reconstructed(index.index))[-12:].sum(axis=1).mean() for index in (learned, plain)]
    assert learned.ids == tiny.documents.ids
    assert errors[0] < errors[1]
