import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.indexes.factory import build_faiss, empty_index, set_parameters
from retrodistill.indexes.tuning import choose_factory

SIZES = [1, 10, 255, 300, 5_000, 20_000, 99_999, 100_000, 500_000, 2_000_000]
WISHES = [
    *((None, None), (None, 0.5), (None, 0.9), (None, 0.95), (None, 0.99), (None, 1.0)),
    *((60, None), (120, None), (200, None), (400, None), (700, None), (2000, None)),
    *((120, 0.5), (120, 0.95), (400, 0.9), (400, 0.98), (700, 0.95), (10_000, 1.0)),
]


class TestEveryChoice:
    @pytest.mark.parametrize("documents", SIZES)
    @pytest.mark.parametrize(("size", "recall"), WISHES)
    def test_it_parses_can_be_trained_and_knows_its_parameters(self, documents, size, recall):
        chosen = choose_factory(documents, 384, bytes_per_document=size, recall=recall)
        index = empty_index(chosen.factory, 384, documents, chosen.parameters)
        assert index.d == 384

    @pytest.mark.parametrize("documents", SIZES)
    @pytest.mark.parametrize(("size", "recall"), [wish for wish in WISHES if wish[0] is not None])
    def test_it_stays_within_the_bytes(self, documents, size, recall):
        assert choose_factory(documents, 384, bytes_per_document=size, recall=recall).bytes_per_document <= size

    @pytest.mark.parametrize("documents", SIZES)
    @pytest.mark.parametrize("recall", [wish[1] for wish in WISHES if wish[0] is None and wish[1] is not None])
    def test_it_keeps_the_recall_where_bytes_are_free(self, documents, recall):
        assert choose_factory(documents, 384, recall=recall).recall >= recall

    @pytest.mark.parametrize("documents", SIZES)
    @pytest.mark.parametrize(("size", "recall"), [wish for wish in WISHES if None not in wish])
    def test_within_bytes_it_keeps_the_recall_or_says_that_it_does_not(self, documents, size, recall):
        chosen = choose_factory(documents, 384, bytes_per_document=size, recall=recall)
        assert ("no kind" in chosen.reason) == (chosen.recall < recall)

    def test_too_few_bytes_for_the_recall_are_told(self):
        assert "no kind" in choose_factory(5_000, 384, bytes_per_document=60, recall=0.98).reason
        assert "no kind" not in choose_factory(5_000, 384, bytes_per_document=400, recall=0.98).reason

    @pytest.mark.parametrize("dimension", [1, 7, 100, 383, 1024])
    def test_it_parses_for_odd_widths(self, dimension):
        for wish in ({}, {"recall": 0.9}, {"bytes_per_document": 5000}):
            chosen = choose_factory(5000, dimension, **wish)
            assert empty_index(chosen.factory, dimension, 5000, chosen.parameters).d == dimension

    @pytest.mark.parametrize(
        ("documents", "wish"),
        [(600, {}), (600, {"recall": 0.9}), (600, {"bytes_per_document": 8}), (30_000, {"bytes_per_document": 300})],
    )
    def test_its_bytes_are_those_of_the_filled_index(self, documents, wish):
        vectors = np.random.default_rng(0).standard_normal((documents, 16)).astype("f4")
        chosen = choose_factory(documents, 16, **wish)
        one = build_faiss(chosen.factory, vectors[:600])
        two = build_faiss(chosen.factory, np.concatenate([vectors[:600], vectors[:600]]))
        import faiss

        grown = len(faiss.serialize_index(two)) - len(faiss.serialize_index(one))
        assert grown / 600 == pytest.approx(chosen.bytes_per_document, rel=0.05)


class TestRules:
    @pytest.mark.parametrize(
        ("documents", "wish", "factory"),
        [
            (5_000, {}, "Flat"),
            (5_000, {"recall": 0.98}, "SQ8"),
            (5_000, {"bytes_per_document": 400}, "SQ8"),
            (5_000, {"bytes_per_document": 48}, "OPQ48,PQ48"),
            (200, {"bytes_per_document": 60}, "RaBitQ"),
            (50_000, {}, "HNSW32,SQ8"),
            (50_000, {"bytes_per_document": 400}, "SQ8"),
            (200_000, {"bytes_per_document": 400}, "IVF2048,SQ8"),
            (200_000, {"bytes_per_document": 48}, "OPQ48,IVF2048,PQ48"),
            (2_000_000, {}, "IVF4096,SQ8"),
            (2_000_000, {"recall": 1.0}, "Flat"),
        ],
    )
    def test_what_is_chosen(self, documents, wish, factory):
        assert choose_factory(documents, 384, **wish).factory == factory

    @pytest.mark.parametrize("documents", [400, 500, 640, 700, 5_000])
    def test_codebooks_never_make_it_larger_than_exact_vectors(self, documents):
        chosen = choose_factory(documents, 384, bytes_per_document=60)
        assert chosen.fixed_bytes + documents * chosen.bytes_per_document < documents * 4 * 384
        assert ("OPQ" in chosen.factory) == (documents > 640)

    def test_the_reason_names_the_wishes_and_what_is_kept(self):
        reason = choose_factory(5000, 384, bytes_per_document=48, recall=0.95).reason
        for fact in ("OPQ48,PQ48", "5,000 documents", "48 bytes", "0.95", "a scan", "1.0 MB of codebooks", "0.75"):
            assert fact in reason

    def test_more_recall_never_takes_fewer_bytes(self):
        sizes = [choose_factory(50_000, 384, recall=share).bytes_per_document for share in np.arange(0.3, 1.0, 0.05)]
        assert sizes == sorted(sizes)

    def test_its_parameters_are_set_without_more_ado(self):
        vectors = np.random.default_rng(0).standard_normal((700, 8)).astype("f4")
        chosen = choose_factory(50_000, 8)
        index = build_faiss(chosen.factory, vectors)
        set_parameters(index, chosen.parameters)
        assert index.hnsw.efSearch == 128


class TestRefusals:
    def test_bytes_that_nothing_fits_in(self):
        with pytest.raises(UserError, match=r"^20 bytes per document: the smallest code for 100 vectors of 384 dimens"):
            choose_factory(100, 384, bytes_per_document=20)

    @pytest.mark.parametrize("recall", [0, -1, 1.2, float("nan")])
    def test_a_recall_that_is_no_share(self, recall):
        with pytest.raises(UserError, match=r"^recall=.*: choose a share above 0 and up to 1"):
            choose_factory(100, 384, recall=recall)

    @pytest.mark.parametrize(("documents", "dimension"), [(0, 384), (10, 0)])
    def test_nothing_to_index(self, documents, dimension):
        with pytest.raises(UserError, match=r"an index needs one or more of each"):
            choose_factory(documents, dimension)
