import shutil

import numpy as np
import pytest
from ragged_tokens import ragged

from retrodistill.core.digests import file_digest
from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json, write_json
from retrodistill.data import Texts
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens, maxsim, token_encoder
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.indexes import Index, build_index
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings
from retrodistill.indexes.muvera import CandidateIndex, MuveraSettings

DOCUMENTS, QUERIES = ragged(60, seed=1), ragged(8, seed=2)
IDS = [f"d{number}" for number in range(60)]
SPACE = EmbeddingSpace("somewhere", 16, "maxsim", "multi-vector:someone")
MUVERA = MuveraSettings(repetitions=8, k_sim=3, d_proj=8, factory="Flat", candidates=20)


def index_of(**settings):
    return MultiVectorIndex.from_tokens(DOCUMENTS, IDS, SPACE, None, MultiVectorSettings(codec="float32", **settings))


@pytest.fixture
def named(tiny_tokens, tmp_path):
    """The encoder as a folder, so that an index can name it."""
    tiny_tokens.save_pretrained(str(tmp_path / "encoder"), create_model_card=False)
    return load_encoder(f"multi-vector:{tmp_path / 'encoder'}")


class TestExactSearch:
    def test_it_is_brute_force(self):
        scores = maxsim(QUERIES, DOCUMENTS)
        for row, (query, documents, result) in enumerate(index_of().search_vectors(QUERIES, 60)):
            assert query == str(row)
            np.testing.assert_allclose(result, -np.sort(-scores[row]), atol=1e-5)
            np.testing.assert_allclose(scores[row][[IDS.index(one) for one in documents]], result, atol=1e-5)

    def test_mean_maxsim_divides_by_the_query(self):
        space = EmbeddingSpace("somewhere", 16, "meanmaxsim", "multi-vector:someone")
        index = MultiVectorIndex.from_tokens(DOCUMENTS, IDS, space, None, MultiVectorSettings(codec="float32"))
        result, expected = index.search_vectors(QUERIES, 5), index_of().search_vectors(QUERIES, 5)
        np.testing.assert_array_equal(result.document_ids, expected.document_ids)
        np.testing.assert_allclose(result.scores, expected.scores / np.repeat(QUERIES.lengths, 5), atol=1e-5)

    @pytest.mark.parametrize(("codec", "share"), [("float16", 1), ("residual", 0.6)])
    def test_a_codec_keeps_most_of_the_ten_best(self, codec, share):
        exact = index_of().search_vectors(QUERIES, 10).to_dict()
        settings = MultiVectorSettings(codec=codec, bits=4)
        result = (
            MultiVectorIndex.from_tokens(DOCUMENTS, IDS, SPACE, None, settings).search_vectors(QUERIES, 10).to_dict()
        )
        assert np.mean([len(set(exact[query]) & set(result[query])) / 10 for query in exact]) >= share


class TestMuvera:
    def test_all_documents_as_candidates_are_exact_search(self):
        result = index_of(muvera=MUVERA.model_copy(update={"candidates": 60})).search_vectors(QUERIES, 10)
        expected = index_of().search_vectors(QUERIES, 10)
        np.testing.assert_array_equal(result.document_ids, expected.document_ids)
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)

    def test_a_third_of_the_documents_hold_nearly_all_of_the_best(self):
        result = index_of(muvera=MUVERA).search_vectors(QUERIES, 5).to_dict()
        exact = index_of().search_vectors(QUERIES, 5).to_dict()
        assert np.mean([len(set(exact[query]) & set(result[query])) / 5 for query in exact]) >= 0.8

    def test_more_than_the_candidates_can_be_asked_for(self):
        assert len(index_of(muvera=MUVERA).search_vectors(QUERIES, 50)) == 8 * 50

    @pytest.mark.parametrize("factory", ["SQ8", "PQ16x4", "HNSW8", "IVF4,Flat"])
    def test_any_faiss_factory(self, factory):
        index = index_of(muvera=MUVERA.model_copy(update={"factory": factory}))
        result = index.search_vectors(QUERIES, 5)
        assert 0 < len(result) <= 40
        assert np.isfinite(result.scores).all()

    def test_fewer_candidates_than_k_are_no_false_documents(self):
        index = index_of(muvera=MUVERA.model_copy(update={"factory": "IVF8,Flat"}))
        result = index.search_vectors(QUERIES, 60)  # one list of eight is looked into
        assert 8 <= len(result) < 8 * 60
        exact = maxsim(QUERIES, DOCUMENTS)
        for row, (_, documents, scores) in enumerate(result):
            np.testing.assert_allclose(exact[row][[IDS.index(one) for one in documents]], scores, atol=1e-5)

    def test_search_parameters_are_set_and_kept(self, tmp_path):
        lists = {"factory": "IVF8,Flat", "candidates": 60}
        few, all_lists = (
            index_of(muvera=MUVERA.model_copy(update={**lists, "parameters": probes})) for probes in (None, "nprobe=8")
        )
        assert len(few.search_vectors(QUERIES, 60)) < len(all_lists.search_vectors(QUERIES, 60)) == 8 * 60
        all_lists.save(tmp_path / "index")
        assert len(MultiVectorIndex.load(tmp_path / "index").search_vectors(QUERIES, 60)) == 8 * 60

    def test_a_factory_is_checked_before_documents_are_encoded(self, tiny, tiny_multi, monkeypatch):
        monkeypatch.setattr(MultiVectorModel, "encode", None)
        settings = MultiVectorSettings(muvera=MUVERA.model_copy(update={"factory": "IVF100,Flat"}))
        with pytest.raises(UserError, match=r"needs at least 100 vectors to train, there are 60"):
            build_index(tiny, tiny_multi, settings=settings)


@pytest.mark.parametrize("muvera", [None, MUVERA.model_copy(update={"candidates": 60})])
class TestChanging:
    def test_adding_in_two_parts_is_building_at_once(self, muvera):
        index = MultiVectorIndex.from_tokens(
            DOCUMENTS.slice(0, 45), IDS[:45], SPACE, None, MultiVectorSettings(codec="float32", muvera=muvera)
        )
        index.add_vectors(IDS[45:], DOCUMENTS.slice(45, 60))
        result, expected = index.search_vectors(QUERIES, 10), index_of(muvera=muvera).search_vectors(QUERIES, 10)
        np.testing.assert_array_equal(result.document_ids, expected.document_ids)
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)

    def test_removed_documents_are_not_found_and_the_others_are(self, muvera):
        index, expected = index_of(muvera=muvera), index_of().search_vectors(QUERIES, 60).to_dict()
        index.remove(["d3", "d0", "d59"])
        assert len(index) == 57
        for query, documents, scores in index.search_vectors(QUERIES, 57):
            assert {"d3", "d0", "d59"}.isdisjoint(documents)
            np.testing.assert_allclose(scores, [expected[query][one] for one in documents], atol=1e-5)

    def test_removing_then_adding_then_saving(self, muvera, tmp_path):
        index = index_of(muvera=muvera)
        index.remove(IDS[:10])
        index.add_vectors(IDS[:10], DOCUMENTS.slice(0, 10))
        index.save(tmp_path / "index")
        loaded = MultiVectorIndex.load(tmp_path / "index")
        assert loaded.ids == IDS[10:] + IDS[:10]
        result, expected = (one.search_vectors(QUERIES, 60).to_dict() for one in (loaded, index_of()))
        for query in expected:
            assert result[query] == pytest.approx(expected[query], abs=1e-5)

    def test_ids_that_are_there_or_not_there(self, muvera):
        with pytest.raises(UserError, match=r"^'d7': in the index already"):
            index_of(muvera=muvera).add_vectors(["d7"], DOCUMENTS.slice(7, 8))
        with pytest.raises(UserError, match=r"^cannot remove 'nobody': not in the index.$"):
            index_of(muvera=muvera).remove(["d1", "nobody"])


class TestOfTexts:
    def test_it_is_an_index(self, tiny, tiny_multi):
        assert isinstance(build_index(tiny, tiny_multi), Index)

    def test_it_ranks_by_maxsim_of_its_encoder(self, tiny, tiny_multi):
        index = build_index(tiny, tiny_multi, settings=MultiVectorSettings(codec="float32"))
        queries = tiny.split("test")
        exact = maxsim(
            tiny_multi.encode(queries.texts, "query"),
            tiny_multi.encode(tiny.documents.texts, "document"),
        )
        for row, (_, documents, scores) in enumerate(index.search(queries, tiny, 7)):
            np.testing.assert_allclose(scores, -np.sort(-exact[row])[:7], atol=1e-4)
            np.testing.assert_allclose(exact[row][tiny.documents.positions(documents)], scores, atol=1e-4)

    def test_it_answers_as_its_responder_does(self, tiny, tiny_multi):
        index = build_index(tiny, tiny_multi)
        rows = index.query_fn(tiny, 3)("star planet")[0][0]
        assert [index.ids[row] for row in rows] == list(index.search("star planet", k=3).document_ids)

    def test_documents_are_added_as_texts(self, tiny, tiny_multi):
        index = build_index(tiny, tiny_multi)
        index.add(Texts.from_pairs([("new", "comet nebula comet nebula")]))
        assert index.ids[-1] == "new"
        assert "new" in index.search("comet nebula", k=61).to_dict()["0"]

    def test_another_build_takes_the_tokens_that_are_there(self, tiny, tiny_multi, monkeypatch):
        first = build_index(tiny, tiny_multi).search(["star"], k=5)
        monkeypatch.setattr("retrodistill.indexes.multi_vector._tokens", None)
        again = build_index(tiny, tiny_multi, settings=MultiVectorSettings(muvera=MUVERA))
        assert set(again.search(["star"], k=5).document_ids) & set(first.document_ids)

    @pytest.mark.parametrize("codec", ["float16", "residual"])
    def test_a_build_that_was_stopped_goes_on(self, tiny, tiny_multi, monkeypatch, codec):
        settings = MultiVectorSettings(codec=codec, sample=30)
        expected = build_index(tiny, tiny_multi, settings=settings)
        monkeypatch.setattr("retrodistill.indexes.multi_vector._BLOCK", 8)
        plain, left = MultiVectorModel.encode, [4]

        def interrupted(self, texts, role, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return plain(self, texts, role, **options)

        monkeypatch.setenv("RETRODISTILL_CACHE", str(expected.store.parts[0].filename) + "-other")
        monkeypatch.setattr(MultiVectorModel, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_index(tiny, tiny_multi, settings=settings)
        encoded = []
        monkeypatch.setattr(
            MultiVectorModel, "encode", lambda *given, **options: encoded.extend(given[1]) or plain(*given, **options)
        )
        result = build_index(tiny, tiny_multi, settings=settings)
        assert 0 < len(encoded) < 60
        run, other = (one.search(tiny.split("test"), k=60).to_dict() for one in (result, expected))
        for query in run:
            assert run[query] == pytest.approx(other[query], abs=2e-2 if codec == "residual" else 1e-3)


class TestSaving:
    @pytest.mark.parametrize("muvera", [None, MUVERA])
    @pytest.mark.parametrize("codec", ["float16", "residual"])
    def test_a_loaded_index_finds_the_same(self, tmp_path, codec, muvera):
        settings = MultiVectorSettings(codec=codec, muvera=muvera)
        index = MultiVectorIndex.from_tokens(DOCUMENTS, IDS, SPACE, None, settings, name="mine")
        index.save(tmp_path / "index")
        loaded = MultiVectorIndex.load(tmp_path / "index")
        assert (loaded.settings, loaded.space, loaded.name, loaded.ids) == (settings, SPACE, "mine", IDS)
        assert loaded.search_vectors(QUERIES, 10).to_dict() == index.search_vectors(QUERIES, 10).to_dict()
        assert loaded.bytes_per_document() == index.bytes_per_document()

    def test_settings_of_version_0_1_0(self, tmp_path):
        index_of().save(tmp_path / "index")
        path = tmp_path / "index" / "manifest.json"
        content = read_json(path)
        content["settings"] |= {"bytes": 16, "sample": None}
        write_json(path, content)
        assert MultiVectorIndex.load(tmp_path / "index").settings == index_of().settings

    def test_codes_stay_on_disk_unless_asked_for(self, tmp_path):
        index_of().save(tmp_path / "index")
        assert isinstance(MultiVectorIndex.load(tmp_path / "index").store.parts[0], np.memmap)
        assert not isinstance(MultiVectorIndex.load(tmp_path / "index", memory_map=False).store.parts[0], np.memmap)

    def test_a_loaded_index_can_take_its_own_place(self, tmp_path):
        index_of(muvera=MUVERA).save(tmp_path / "index")
        loaded = MultiVectorIndex.load(tmp_path / "index")
        loaded.remove(["d0"])
        loaded.save(tmp_path / "index")
        assert MultiVectorIndex.load(tmp_path / "index").ids == IDS[1:]

    def test_its_query_encoder_comes_with_it(self, tiny, named, tmp_path):
        index = build_index(tiny, named)
        index.save(tmp_path / "index")
        loaded = MultiVectorIndex.load(tmp_path / "index")
        assert loaded.search("star", k=5).to_dict() == index.search("star", k=5).to_dict()
        loaded.add(Texts.from_pairs([("new", "comet")]))
        assert len(loaded) == 61


class TestRefusals:
    def test_a_token_store_that_does_not_match_its_faiss_file(self, tmp_path):
        index_of(muvera=MUVERA).save(tmp_path / "one")
        half = MultiVectorIndex.from_tokens(
            DOCUMENTS.slice(0, 30), IDS[:30], SPACE, None, MultiVectorSettings(codec="float32", muvera=MUVERA)
        )
        half.save(tmp_path / "half")
        shutil.copy(tmp_path / "half" / "muvera.faiss", tmp_path / "one" / "muvera.faiss")
        with pytest.raises(UserError, match=r"muvera.faiss is damaged"):
            MultiVectorIndex.load(tmp_path / "one")
        manifest = read_json(tmp_path / "one" / "manifest.json")
        manifest["about"]["checksums"]["muvera.faiss"] = file_digest(tmp_path / "one" / "muvera.faiss")
        write_json(tmp_path / "one" / "manifest.json", manifest)
        with pytest.raises(UserError, match=r"muvera.faiss holds 30 encodings of 512 dimensions, tokens.bin and"):
            MultiVectorIndex.load(tmp_path / "one")

    def test_encodings_of_fewer_documents(self):
        half = index_of(muvera=MUVERA)
        candidate_index = CandidateIndex.build(MUVERA, half.store.without(np.arange(60) < 30))
        with pytest.raises(UserError, match=r"^tokens.bin holds 60 documents, muvera.faiss 30 encodings"):
            MultiVectorIndex(half.store, IDS, SPACE, None, half.settings, candidate_index=candidate_index)

    @pytest.mark.parametrize("name", ["tokens.bin", "tokens.bounds.npy", "tokens.codec.json", "muvera.faiss"])
    def test_a_file_cut_short(self, tmp_path, name):
        index_of(muvera=MUVERA).save(tmp_path / "index")
        file = tmp_path / "index" / name
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            MultiVectorIndex.load(tmp_path / "index")

    def test_settings_that_no_index_has(self, tmp_path):
        index_of().save(tmp_path / "index")
        path = tmp_path / "index" / "manifest.json"
        content = read_json(path)
        write_json(path, {**content, "settings": {**content["settings"], "codec": "float8"}})
        with pytest.raises(UserError, match=r"manifest.json: codec: .*build the index again"):
            MultiVectorIndex.load(tmp_path / "index")

    @pytest.mark.parametrize("k", [0, 61])
    def test_k_outside_the_corpus(self, k):
        with pytest.raises(UserError, match=rf"^k={k}: the corpus has 60 documents"):
            index_of().search_vectors(QUERIES, k)

    def test_token_vectors_of_another_dimension(self):
        with pytest.raises(UserError, match=r"^queries of 8 dimensions, the index has 16"):
            index_of().search_vectors(ragged(2, dimension=8), 3)
        with pytest.raises(UserError, match=r"^documents of 8 dimensions, the index has 16"):
            index_of().add_vectors(["new"], ragged(1, dimension=8))

    def test_bad_token_vectors_are_named(self):
        vectors = DOCUMENTS.vectors.copy()
        vectors[DOCUMENTS.bounds[9]] = np.nan
        with pytest.raises(UserError, match=r"^documents: 1 token vectors of 1 texts are NaN or infinite \('d9'\)"):
            MultiVectorIndex.from_tokens(Tokens(vectors, DOCUMENTS.bounds), IDS, SPACE)

    def test_a_document_without_tokens_is_named(self):
        bare = Tokens(DOCUMENTS.vectors[:4], np.array([0, 2, 2, 4]))
        with pytest.raises(UserError, match=r"^documents: 1 have no token \('d1'\)"):
            MultiVectorIndex.from_tokens(bare, IDS[:3], SPACE)

    def test_queries_of_another_space(self, tiny, tiny_multi, tiny_model):
        other = token_encoder(tiny_model, 8, seed=1)
        with pytest.raises(UserError, match=r"have 8 dimensions, the documents by .* have 32"):
            build_index(tiny, tiny_multi, other)

    def test_searching_texts_without_an_encoder(self):
        with pytest.raises(UserError, match=r"has no query encoder; give one"):
            index_of().search("star", k=3)

    def test_an_index_of_another_kind(self, tiny, tiny_model, tmp_path):
        from retrodistill.indexes import build_index

        build_index(tiny, f"dense:{tiny_model}").save(tmp_path / "dense")
        with pytest.raises(UserError, match=r"holds an index of kind faiss, not multi-vector"):
            MultiVectorIndex.load(tmp_path / "dense")
