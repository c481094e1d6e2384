import numpy as np
import pytest
from store_children import PAIRS, PART, Log, LoggedScorer, fake_score, kill_after, start

from retrodistill.core import stores
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders import embeddings
from retrodistill.rankers import cross_encoder
from retrodistill.rankers.cross_encoder import ScoreStore

OWNER = Manifest("teacher", {"weights": "abc"}, {"max_length": 64})
QUERIES, DOCUMENTS = (list(side) for side in zip(*PAIRS, strict=True))
WANTED = np.array([fake_score(pair) for pair in PAIRS])
CHILD = """
    from retrodistill.encoders import embeddings
    from retrodistill.rankers.cross_encoder import ScoreStore
    from retrodistill.core.manifest import Manifest
    embeddings._PART = PART
    root, log, delay = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    owner = Manifest("teacher", {"weights": "abc"}, {"max_length": 64})
    store = ScoreStore("fake", owner, root)
    queries, documents = zip(*PAIRS)
    store.fill(queries, documents, LoggedScorer(log, delay))
    assert (store.gather(queries, documents) == [fake_score(pair) for pair in PAIRS]).all()
"""


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(embeddings, "_PART", PART)


@pytest.fixture
def store(tmp_path):
    return ScoreStore("fake", OWNER, tmp_path)


@pytest.fixture
def scorer(tmp_path):
    return LoggedScorer(tmp_path / "log")


@pytest.mark.xdist_group("children")
class TestKill:
    def test_in_the_middle_of_scoring_loses_at_most_one_part_and_scores_nothing_twice(self, tmp_path, small_parts):
        ScoreStore("fake", OWNER, tmp_path)  # here, so that the child need not import torch for the manifest
        log = Log(tmp_path / "log")
        child = start(CHILD, tmp_path, log.path, 0.002)
        computed = kill_after(child, log, 100)
        store = ScoreStore("fake", OWNER, tmp_path)
        missing = len(store.missing(QUERIES, DOCUMENTS))
        kept = len(PAIRS) - missing
        assert 0 <= computed - kept <= PART
        assert kept >= 100 - PART
        rest = LoggedScorer(tmp_path / "rest")
        store.fill(QUERIES, DOCUMENTS, rest)
        assert sum(rest.log.counts().values()) == missing
        assert set(rest.log.counts().values()) == {1}
        assert store.gather(QUERIES, DOCUMENTS).tolist() == WANTED.tolist()
        assert not list(store._store.folder.glob(".*.part"))

    def test_two_processes_at_once_score_every_pair_once(self, tmp_path):
        ScoreStore("fake", OWNER, tmp_path)
        log = Log(tmp_path / "log")
        children = [start(CHILD, tmp_path, log.path, 0.0005) for _ in range(2)]
        for child in children:
            status, _, said = child.wait()  # that it waits for the other, on a slow machine
            assert status == 0, said
        assert log.counts() == dict.fromkeys(("|".join(pair) for pair in PAIRS), 1)


class TestFill:
    def test_scores_each_distinct_pair_once_over_any_number_of_calls(self, store, scorer, small_parts):
        store.fill(QUERIES[:50] * 2, DOCUMENTS[:50] * 2, scorer)
        store.fill(QUERIES[30:90], DOCUMENTS[30:90], scorer)
        assert scorer.log.counts() == dict.fromkeys(("|".join(pair) for pair in PAIRS[:90]), 1)
        assert store.gather(QUERIES[:90], DOCUMENTS[:90]).tolist() == WANTED[:90].tolist()

    def test_scores_stay_float32_to_the_bit(self, tmp_path):
        scores = np.array([1e-45, -3.4e38, 1 / 3, -0.0, 16777217], dtype=np.float32)
        queries, documents = QUERIES[:5], [f"{number}" for number in range(5)]
        ScoreStore("fake", OWNER, tmp_path).fill(queries, documents, lambda pairs: scores[[int(d) for _, d in pairs]])
        found = ScoreStore("fake", OWNER, tmp_path).gather(queries, documents)
        assert found.dtype == np.float32
        assert found.tobytes() == scores.tobytes()

    def test_query_and_document_do_not_swap_or_run_into_each_other(self, store):
        store.fill(["a", "ab"], ["b", "c"], lambda pairs: np.array([len(q) + 10 * len(d) for q, d in pairs]))
        assert len(store.missing(["b", "a", "ab"], ["a", "bc", "c"])) == 2

    def test_longest_pairs_come_first(self, store):
        seen = []
        texts = ["x" * length for length in (3, 50, 1, 20)]
        store.fill(["q"] * 4, texts, lambda pairs: seen.extend(len(d) for _, d in pairs) or np.zeros(len(pairs)))
        assert seen == [50, 20, 3, 1]

    def test_of_nothing_calls_nobody(self, store):
        store.fill([], [], lambda pairs: pytest.fail("called"))
        assert store.gather([], []).shape == (0,)
        assert store.seconds([], [], lambda pairs: pytest.fail("called")) == (0, 0.0)

    def test_many_parts_are_compacted_with_every_row(self, store, scorer, small_parts, monkeypatch):
        monkeypatch.setattr(stores, "_COMPACT_ABOVE", 4)
        store.fill(QUERIES, DOCUMENTS, scorer)
        assert len(list(store._store.folder.glob("part-*"))) == 1
        assert store.gather(QUERIES, DOCUMENTS).tolist() == WANTED.tolist()

    def test_rows_that_a_killed_compaction_left_twice_change_nothing(self, store, scorer, small_parts, tmp_path):
        store.fill(QUERIES, DOCUMENTS, scorer)
        for part in store._store.parts()[:3]:
            store._store.append(part)
        again = ScoreStore("fake", OWNER, tmp_path)
        assert len(again.missing(QUERIES, DOCUMENTS)) == 0
        assert again.gather(QUERIES, DOCUMENTS).tolist() == WANTED.tolist()


class TestRefusals:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
    def test_a_score_that_is_not_finite_names_the_pair_and_keeps_the_parts_before(self, store, bad, small_parts):
        def scorer(pairs):
            return np.array([bad if document == "document 5" else 1.0 for _, document in pairs])

        with pytest.raises(
            UserError, match="not finite for 'query 5' and 'document 5'; nothing of this batch was kept"
        ):
            store.fill(QUERIES, DOCUMENTS, scorer)
        assert (
            len(store._store.parts()) == (len(PAIRS) - 1) // PART
        )  # 'document 5' is among the shortest: the last part
        with pytest.raises(UserError, match="pairs are not in the store of fake; score them first"):
            store.gather(["query 5"], ["document 5"])

    def test_another_number_of_scores(self, store):
        with pytest.raises(UserError, match=r"gave scores of shape \(3, 2\) for 3 pairs"):
            store.fill(QUERIES[:3], DOCUMENTS[:3], lambda pairs: np.zeros((len(pairs), 2)))

    def test_a_store_of_another_teacher(self, store, scorer, tmp_path):
        store.fill(QUERIES[:1], DOCUMENTS[:1], scorer)
        for other in (
            Manifest("teacher", {"weights": "other"}, {"max_length": 64}),
            Manifest("teacher", {"weights": "abc"}, {"max_length": 128}),
        ):
            with pytest.raises(UserError, match="belongs to another teacher"):
                ScoreStore("fake", other, tmp_path)

    def test_in_the_cache_each_version_has_its_own_folder(self):
        first = ScoreStore("fake", OWNER)
        second = ScoreStore("fake", Manifest("teacher", {"weights": "other"}, {}))
        assert first._store.folder != second._store.folder

    def test_a_truncated_part_is_named_and_only_its_rows_are_scored_again(
        self, store, scorer, small_parts, tmp_path, capsys
    ):
        store.fill(QUERIES, DOCUMENTS, scorer)
        path = sorted(store._store.folder.glob("part-*"))[2]
        path.write_bytes(path.read_bytes()[:-30])
        again, rest = ScoreStore("fake", OWNER, tmp_path), LoggedScorer(tmp_path / "rest")
        assert f"{path} is damaged" in capsys.readouterr().err
        again.fill(QUERIES, DOCUMENTS, rest)
        assert sum(rest.log.counts().values()) == PART
        assert again.gather(QUERIES, DOCUMENTS).tolist() == WANTED.tolist()


class TestPlan:
    def test_counts_distinct_pairs_and_takes_the_measured_rate(self, store, monkeypatch):
        clock = iter([100.0, 101.6])
        monkeypatch.setattr(cross_encoder.time, "perf_counter", lambda: next(clock))
        probed = []
        items, seconds = store.seconds(QUERIES * 2, DOCUMENTS * 2, probed.extend)
        assert (items, len(probed)) == (300, 1 + 32)  # the first call is slower
        assert seconds == pytest.approx(300 * 1.6 / 32)
        assert len(store.missing(QUERIES, DOCUMENTS)) == 300
