"""Filtered searches of every kind of index against an exhaustive search from which the other documents are removed."""

import json

import numpy as np
import pyarrow as pa
import pytest
from ragged_tokens import ragged
from scipy.sparse import csr_array
from scipy.sparse import random as random_sparse

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.data import Collection
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.indexes import FaissIndex, InvertedIndex, MultiVectorIndex, build_index, load_index, selected
from retrodistill.indexes.columns import columns_of
from retrodistill.indexes.factory import build_faiss, known_parameters
from retrodistill.indexes.inverted import InvertedSettings
from retrodistill.indexes.multi_vector import MultiVectorSettings
from retrodistill.indexes.muvera import MuveraSettings

COUNT, WIDTH, K = 400, 16, 10
IDS = [f"d{row}" for row in range(COUNT)]
SPACE = EmbeddingSpace("s", WIDTH, "cosine", "dense:m")
GROUPS = np.random.default_rng(7).integers(0, 10, COUNT)
COLUMNS = pa.table({"group": GROUPS, "tags": [["even"] if group % 2 == 0 else [] for group in GROUPS]})
FILTERS = {"some": {"group": {"<": 3}}, "most": {"group": {"!=": 4}}, "half": {"tags": "even"}, "few": {"group": 5}}
FACTORIES = [
    *("Flat", "SQ8", "SQfp16", "PQ8x4", "OPQ8,PQ8x4", "RaBitQ", "RaBitQ4", "L2norm,SQ8", "PCA8,Flat"),
    *("RQ4x4", "LSQ4x4", "PRQ2x2x4", "PLSQ2x2x4", "PQ16x4fs", "RaBitQfs", "RQ4x4fs"),
    *("IVF4,Flat", "IVF4,SQ8", "IVF4,PQ8x4", "IVF4,RaBitQ4", "RR16,IVF4,PQ16x4", "IVF4_HNSW4,Flat", "IVF4,RQ4x4"),
    *("IVF4,PQ16x4fs", "RR16,IVF4,RaBitQfs", "IVF4,RQ4x4fs", "HNSW8", "HNSW8,SQ8", "L2norm,HNSW8"),
    *("RaBitQ,RFlat", "SQ8,Refine(SQfp16)", "SQ8,Refine(PQ8x4)", "PQ16x4fs,RFlat", "IVF4,SQ8,RFlat"),
    *("OPQ8,PQ8x4,RFlat", "IVF4,PQ16x4fs,RFlat"),
]


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    set_quiet(True)  # of warnings about few vectors to train on
    yield
    set_quiet(False)


@pytest.fixture(scope="module")
def vectors():
    vectors = np.random.default_rng(0).standard_normal((COUNT, WIDTH)).astype("f4")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def queries():
    return np.random.default_rng(1).standard_normal((6, WIDTH)).astype("f4")


@pytest.fixture(scope="module")
def dense(vectors):
    """An index by factory; with parameters for which approximate kinds are exhaustive."""
    made = {}

    def make(factory):
        if factory not in made:
            index = build_faiss(factory, vectors)
            most = {"nprobe": 4, "efSearch": COUNT, "k_factor_rf": COUNT}
            wanted = {name: most[name] for name in known_parameters(index) if name in most}
            made[factory] = FaissIndex(index, IDS, SPACE, factory=factory)
            made[factory].columns = COLUMNS
            if wanted:
                made[factory].parameters = ",".join(f"{name}={value}" for name, value in wanted.items())
        return made[factory]

    return make


@pytest.fixture
def many(monkeypatch):
    """Any number of documents is many."""
    monkeypatch.setattr(selected, "_FEW", 0)
    monkeypatch.setattr(selected, "_SHARE", 0.0)


def passing(given):
    """Ids that pass, by another way than masks."""
    (name, wanted), group = next(iter(given.items())), GROUPS
    if name == "tags":
        return {id_ for id_, own in zip(IDS, group, strict=True) if own % 2 == 0}
    compare = {"<": lambda own: own < 3, "!=": lambda own: own != 4}
    test = compare[next(iter(wanted))] if isinstance(wanted, dict) else lambda own: own == 5
    return {id_ for id_, own in zip(IDS, group, strict=True) if test(own)}


def check(index, queries, given, k=K):
    """Scores equal those of all results without the other documents; equal scores may be of other documents."""
    whole, found = index.search_vectors(queries, len(index)).to_dict(), index.search_vectors(queries, k, filter=given)
    inside = passing(given)
    for query, scores in whole.items():
        expected = {id_: score for id_, score in scores.items() if id_ in inside}
        own = found.to_dict()[query]
        assert set(own) <= inside
        assert list(own.values()) == pytest.approx(list(expected.values())[:k], abs=1e-5)
        assert own == pytest.approx({id_: expected[id_] for id_ in own}, abs=1e-5)


class TestFaiss:
    @pytest.mark.parametrize("factory", FACTORIES)
    def test_few_documents(self, dense, queries, factory):
        for given in FILTERS.values():
            check(dense(factory), queries, given)

    @pytest.mark.usefixtures("many")
    @pytest.mark.parametrize("factory", FACTORIES)
    def test_many_documents(self, dense, queries, factory):
        for given in FILTERS.values():
            check(dense(factory), queries, given)

    @pytest.mark.parametrize("is_many", [False, True])
    @pytest.mark.parametrize(
        ("factory", "parameters"), [("HNSW8", "efSearch=1"), ("IVF32,Flat", "nprobe=1"), ("IVF32,RQ4x4fs", "nprobe=1")]
    )
    def test_approximate_ones_find_k_if_k_pass(self, vectors, queries, factory, parameters, is_many, request):
        index = FaissIndex(build_faiss(factory, vectors), IDS, SPACE)
        index.parameters, index.columns = parameters, COLUMNS
        if is_many:
            request.getfixturevalue("many")
        found = index.search_vectors(queries, K, filter=FILTERS["few"])
        assert [len(ids) for _, ids, _ in found] == [K] * len(queries)
        assert {id_ for _, ids, _ in found for id_ in ids} <= passing(FILTERS["few"])
        assert index.parameters == parameters
        if "nprobe" in parameters:
            assert index.index.nprobe == 1

    def test_after_documents_were_removed_and_added(self, vectors, queries):
        index = FaissIndex(build_faiss("IVF4,Flat", vectors[:300]), IDS[:300], SPACE)
        index.parameters, index.columns = "nprobe=4", COLUMNS.slice(0, 300)
        index.remove(IDS[10:50])
        added = {id_: {"group": int(group)} for id_, group in zip(IDS[300:], GROUPS[300:], strict=True)}
        index.add_vectors(IDS[300:], vectors[300:], added)
        check(index, queries, FILTERS["some"])
        check(index, queries, FILTERS["few"])

    def test_by_id(self, dense, queries):
        found = dense("SQ8").search_vectors(
            queries, K, filter={"document_id": ["d3", "d8", "none"], "group": {">": -1}}
        )
        assert [set(ids) for _, ids, _ in found] == [{"d3", "d8"}] * len(queries)

    def test_none_pass(self, dense, queries):
        assert len(dense("Flat").search_vectors(queries, K, filter={"group": 77})) == 0


class TestOtherKinds:
    @pytest.mark.parametrize("bits", [8, None])
    def test_inverted(self, bits):
        random = np.random.default_rng(3)
        matrix = csr_array(random_sparse(COUNT, 50, 0.2, random_state=3, dtype=np.float32))
        space = EmbeddingSpace("s", 50, "dot", "sparse:m")
        index = InvertedIndex.from_csr(IDS, matrix, space, settings=InvertedSettings(bits=bits))
        index.columns = COLUMNS
        for given in FILTERS.values():
            check(index, csr_array(random_sparse(5, 50, 0.2, random_state=random, dtype=np.float32)), given)

    @pytest.mark.parametrize("is_many", [False, True])
    def test_seismic(self, is_many, request):
        pytest.importorskip("seismic")
        if is_many:
            request.getfixturevalue("many")
        matrix = csr_array(random_sparse(COUNT, 50, 0.2, random_state=3, dtype=np.float32))
        space, settings = EmbeddingSpace("s", 50, "dot", "sparse:m"), {"query_cut": 50, "heap_factor": 0.1}
        index = InvertedIndex.from_csr(IDS, matrix, space, settings=InvertedSettings(backend="seismic", **settings))
        index.columns = COLUMNS
        for given in FILTERS.values():
            queries = csr_array(random_sparse(5, 50, 0.2, random_state=4, dtype=np.float32))
            found = index.search_vectors(queries, K, filter=given)
            exact = (queries @ matrix.T).toarray()
            for query, ids, scores in found:
                assert set(ids) <= passing(given)
                best = sorted((exact[int(query), IDS.index(id_)] for id_ in passing(given)), reverse=True)[:K]
                assert scores == pytest.approx(best, rel=2e-2)

    @pytest.mark.parametrize("codec", ["float32", "float16", "residual"])
    @pytest.mark.parametrize("muvera", [None, MuveraSettings(repetitions=2, k_sim=2, candidates=COUNT)])
    def test_multi_vector(self, codec, muvera):
        documents, asked = ragged(COUNT, seed=1, longest=6), ragged(4, seed=2, longest=4)
        settings = MultiVectorSettings(codec=codec, muvera=muvera)
        index = MultiVectorIndex.from_tokens(
            documents, IDS, EmbeddingSpace("s", 16, "maxsim", "multi-vector:m"), settings=settings
        )
        index.columns = COLUMNS
        for given in FILTERS.values():
            check(index, asked, given)

    @pytest.mark.usefixtures("many")
    def test_muvera_of_few_candidates_finds_k_of_those_that_pass(self):
        documents, asked = ragged(COUNT, seed=1, longest=6), ragged(4, seed=2, longest=4)
        settings = MultiVectorSettings(muvera=MuveraSettings(repetitions=2, k_sim=2, candidates=K))
        space = EmbeddingSpace("s", 16, "maxsim", "multi-vector:m")
        index = MultiVectorIndex.from_tokens(documents, IDS, space, settings=settings)
        index.columns = COLUMNS
        index.remove(IDS[:5])
        for given in FILTERS.values():
            found = index.search_vectors(asked, K, filter=given)
            assert [len(ids) for _, ids, _ in found] == [K] * len(asked)
            assert {id_ for _, ids, _ in found for id_ in ids} <= passing(given) - set(IDS[:5])


FIELDS = {
    "a": {"year": 2020, "tags": ["x"], "day": "2020-01-31", "at": "2020-01-31T10:00:00Z"},
    "b": {"year": 2021, "score": 1.5},
}


@pytest.fixture(scope="module")
def corpus():
    documents = {"a": ("A title", "A red planet."), "b": "A blue planet.", "c": "A star."}
    return Collection.from_parts("small", documents, {}, {}, FIELDS)


@pytest.fixture(scope="module")
def stored(corpus, tiny_model):
    return build_index(corpus, f"dense:{tiny_model}")


def found(index, given):
    return set(index.search("planet", filter=given).to_dict()["0"])


def new_vectors(index, count):
    return np.random.default_rng(5).standard_normal((count, index.index.d))


class TestStored:
    def test_all_fields_by_default_and_in_the_folder(self, stored, corpus, tmp_path):
        stored.save(tmp_path / "index")
        manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
        assert "documents.arrow" in manifest["about"]["checksums"]
        assert manifest["about"]["columns"]["year"] == "int64"
        before = pa.total_allocated_bytes()
        index = load_index(tmp_path / "index")
        assert index.columns.equals(corpus.fields)
        assert index.fields_of(["c", "b"]) == [{}, FIELDS["b"]]
        assert index.fields_of(["a"])[0]["day"].isoformat() == "2020-01-31"
        assert pa.total_allocated_bytes() - before < 10_000
        assert found(index, {"year": {">=": 2021}}) == {"b"}

    def test_a_changed_field_does_not_change_what_the_index_is(self, stored, corpus, tmp_path):
        stored.save(tmp_path / "one")
        other = load_index(tmp_path / "one")
        other.columns = columns_of(corpus, ["year"])
        other.save(tmp_path / "two")
        assert load_index(tmp_path / "two").made_from == load_index(tmp_path / "one").made_from

    def test_a_damaged_file_is_refused(self, stored, tmp_path):
        stored.save(tmp_path / "index")
        (tmp_path / "index" / "documents.arrow").write_bytes(b"x")
        with pytest.raises(UserError, match=r"documents\.arrow"):
            load_index(tmp_path / "index")

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({"fields": ["year"]}, ["year"]),
            ({"fields": "year, tags"}, ["year", "tags"]),
            ({"fields": "none", "store_texts": True}, ["title", "text"]),
        ],
    )
    def test_a_choice(self, corpus, tiny_model, options, names):
        index = build_index(corpus, f"dense:{tiny_model}", **options)
        assert index.columns.column_names == names

    def test_none_at_all(self, corpus, tiny_model, tmp_path):
        index = build_index(corpus, f"dense:{tiny_model}", fields=None)
        index.save(tmp_path / "index")
        assert not (tmp_path / "index" / "documents.arrow").exists()
        with pytest.raises(UserError, match=r"'year'.*document_id"):
            load_index(tmp_path / "index").search("planet", filter={"year": 2020})

    def test_an_unknown_one_is_refused_before_texts_are_encoded(self, corpus, tiny_model, monkeypatch):
        monkeypatch.setattr("retrodistill.indexes.faiss_index.build_faiss", None)
        with pytest.raises(UserError, match=r"'yaer'.*'year'"):
            build_index(corpus, f"dense:{tiny_model}", fields=["yaer"])

    def test_titles_and_texts(self, corpus, tiny_model):
        index = build_index(corpus, f"dense:{tiny_model}", fields="none", store_texts=True)
        assert index.fields_of(["a", "b"]) == [
            {"title": "A title", "text": "A red planet."},
            {"text": "A blue planet."},
        ]
        assert found(index, {"text": "A star."}) == {"c"}
        with pytest.raises(UserError, match="'nobody'"):
            index.fields_of(["nobody"])


class TestChanges:
    @pytest.fixture
    def index(self, stored, tmp_path):
        stored.save(tmp_path / "index")
        return load_index(tmp_path / "index")

    def test_added_fields_are_kept_and_missing_ones_are_null(self, index):
        new = {"n": {"year": 2022, "score": 2, "at": "2020-02-01T00:00:00Z"}}
        index.add_vectors(["n", "m"], new_vectors(index, 2), new)
        assert index.columns.num_rows == 5
        assert index.fields_of(["m", "n"])[0] == {}
        assert index.fields_of(["n"])[0]["score"] == 2.0
        assert found(index, {"year": {"exists": True}}) == {"a", "b", "n"}
        index.remove(["a", "n"])
        assert index.columns["year"].to_pylist() == [2021, None, None]
        assert index.fields_of(["b"]) == [FIELDS["b"]]

    def test_texts_of_added_documents(self, corpus, tiny_model):
        from retrodistill.data import Texts

        index = build_index(corpus, f"dense:{tiny_model}", store_texts=True)
        index.add(Texts.from_pairs([("n", "A new moon.")]), {"n": {"year": 1}})
        assert index.fields_of(["n"]) == [{"text": "A new moon.", "year": 1}]

    @pytest.mark.parametrize(
        ("fields", "fact"),
        [
            ({"n": {"yaer": 1}}, "'yaer'"),
            ({"n": {"year": "x"}}, "year (integer)"),
            ({"n": {"day": "soon"}}, "day (date)"),
            ({"z": {"year": 1}}, "'z'"),
        ],
    )
    def test_fields_that_do_not_fit_change_nothing(self, index, fields, fact):
        with pytest.raises(UserError) as caught:
            index.add_vectors(["n"], new_vectors(index, 1), fields)
        assert fact in str(caught.value)
        assert (len(index), index.index.ntotal, index.columns.num_rows) == (3, 3, 3)

    def test_an_index_without_columns_takes_no_fields(self, corpus, tiny_model):
        index = build_index(corpus, f"dense:{tiny_model}", fields="none")
        with pytest.raises(UserError, match="'year'"):
            index.add_vectors(["n"], new_vectors(index, 1), {"n": {"year": 1}})
