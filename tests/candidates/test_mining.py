import numpy as np
import pytest

from retrodistill.candidates import mine
from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.rankers import load_ranker
from retrodistill.runs import Run, union


class TestMine:
    def test_is_the_union_of_the_sources_results(self, tiny, tiny_model):
        sources = ["bm25", f"dense:{tiny_model}"]
        found = mine(tiny, "test", sources, depth=7)
        queries = tiny.split("test")
        runs = [load_ranker(source).search(queries, tiny, 7) for source in sources]
        assert found.to_dict() == union(runs).to_dict()
        rows = zip(*(found.table[name].to_pylist() for name in ("query_id", "document_id", "sources")), strict=True)
        for query, document, named in rows:
            assert named == "+".join(run.name for run in runs if document in run.to_dict().get(query, {}))
        sizes = np.diff(found.bounds)
        assert (sizes <= 14).all()
        assert (sizes >= 7).all()

    def test_takes_queries_and_recorded_runs(self, tiny):
        queries = tiny.split("dev")
        recorded = Run.from_dict({queries.ids[0]: {"d1": 1.0, "d2": 3.0, "d3": 2.0}}, "e5")
        found = mine(tiny, queries, [recorded], depth=2)
        assert [(q, list(ids)) for q, ids, _ in found] == [(queries.ids[0], ["d2", "d3"])]

    def test_a_depth_beyond_the_corpus_takes_all_documents(self, tiny, tiny_model):
        found = mine(tiny, "dev", [f"dense:{tiny_model}"], depth=10_000)
        assert set(np.diff(found.bounds)) == {len(tiny.documents)}

    def test_is_deterministic(self, tiny):
        one, two, other = (mine(tiny, "test", ["bm25"], depth=5, random=3, seed=seed) for seed in (1, 1, 2))
        assert one.table.equals(two.table)
        assert one.fingerprint != other.fingerprint

    def test_random_documents_are_last_with_their_source(self, tiny):
        found = mine(tiny, "test", ["bm25"], depth=5, random=6)
        for query in found.query_ids:
            sources = found.select([query]).table["sources"].to_pylist()
            drawn = [source for source in sources if "random" in source]
            assert len(drawn) == 6
            assert sources == sorted(sources, key=lambda source: source == "random")
        assert (found.top(1).scores > 0).all()

    def test_a_query_without_results_has_no_candidates(self):
        collection = Collection.from_parts("small", {"d1": "star planet"}, {"q1": "planet", "q2": "violin"}, {})
        assert mine(collection, "all", ["bm25"]).query_ids == ["q1"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("sources", "options", "message"),
        [
            ([], {}, "no source of candidates; give at least one"),
            ("bm25", {}, r"sources='bm25': give a list, e.g. \['bm25'\]"),
            (["bm25"], {"depth": 0}, "depth is at least 1"),
            (["bm25"], {"random": -1}, "random at least 0"),
            (["bm26"], {}, "unknown model kind 'bm26'. Did you mean 'bm25'?"),
            (["cross-encoder:x"], {}, "scores pairs and cannot search a corpus"),
            ([Run.from_dict({"q1": {"nowhere": 1.0}})], {}, "1 documents"),
        ],
    )
    def test_say_what_is_wrong(self, tiny, sources, options, message):
        with pytest.raises(UserError, match=message):
            mine(tiny, "test", sources, **options)

    def test_a_split_without_queries(self, tiny):
        with pytest.raises(UserError, match=r"collection .* has no split 'validation'; splits: train"):
            mine(tiny, "validation", ["bm25"])
