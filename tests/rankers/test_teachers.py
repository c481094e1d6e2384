import copy

import numpy as np
import pytest
from losses import table

from retrodistill.candidates import mine
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.encoders import load_encoder
from retrodistill.rankers import Ensemble, Ranker, load_ranker, remaining, score
from retrodistill.rankers import corpus as corpus_module
from retrodistill.rankers.bm25 import BM25, load_bm25s
from retrodistill.rankers.corpus import MeanOfZScores
from retrodistill.rankers.recorded import RecordedRanker
from retrodistill.runs import Run, fuse, write_run
from retrodistill.runs.calibration import fit_calibration


@pytest.fixture(scope="module")
def cross_encoder(tiny_cross_encoder):
    """As users make it: the default activation of a model with one label is a sigmoid."""
    import torch
    from sentence_transformers import CrossEncoder

    return CrossEncoder(tiny_cross_encoder, device="cpu", activation_fn=torch.nn.Sigmoid())


@pytest.fixture(scope="module")
def bi_encoder(tiny_model):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(tiny_model, device="cpu")


@pytest.fixture
def changed(request):
    """A copy of a model on which something was changed."""

    def change(model, what):
        import torch

        other = copy.deepcopy(model)
        if what == "weights":
            with torch.no_grad():
                next(other.parameters()).view(-1)[0] += 1e-3
        elif what == "length":
            other.max_seq_length = 17
        elif what == "prompt":
            other.prompts = {"query": "what is "}
            other.default_prompt_name = "query"
        return other

    return change


@pytest.fixture
def candidates(tiny):
    mined = mine(tiny, "test", ["bm25"], depth=5, random=3)
    return mined.select(mined.query_ids[-6:])


def pairs_of(tiny, run):
    return [(tiny.queries[q], tiny.documents[d]) for q, ids, _ in run for d in ids]


def every_pair(tiny, queries):
    rows = np.tile(np.arange(len(tiny.documents)), (len(queries), 1))
    return Run.from_matrix(queries.ids, tiny.documents.ids, rows, np.zeros(rows.shape))


class TestCrossEncoder:
    def test_gives_the_raw_logits_whatever_the_models_activation(
        self, tiny, cross_encoder, tiny_cross_encoder, candidates
    ):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        model = AutoModelForSequenceClassification.from_pretrained(tiny_cross_encoder).eval()
        tokenizer = AutoTokenizer.from_pretrained(tiny_cross_encoder)
        pairs = pairs_of(tiny, candidates)
        features = tokenizer([list(pair) for pair in pairs], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**features).logits.squeeze(1).numpy()
        found = load_ranker(cross_encoder).score(tiny.queries, tiny, candidates)
        np.testing.assert_allclose(found.scores, logits, rtol=1e-4, atol=1e-6)
        sigmoids = cross_encoder.predict(pairs, show_progress_bar=False)
        np.testing.assert_allclose(sigmoids, 1 / (1 + np.exp(-logits)), rtol=1e-4)
        named = load_ranker(f"cross-encoder:{tiny_cross_encoder}").score(tiny.queries, tiny, candidates)
        np.testing.assert_allclose(named.scores, logits, rtol=1e-4, atol=1e-6)

    def test_scores_are_float32_to_the_bit_after_the_store(self, tiny, cross_encoder, candidates):
        teacher = load_ranker(cross_encoder)
        once, twice = (teacher.score(tiny.queries, tiny, candidates).scores for _ in range(2))
        assert once.tobytes() == twice.tobytes()
        assert (once == once.astype(np.float32)).all()

    def test_a_pair_is_scored_once(self, tiny, cross_encoder, candidates, monkeypatch):
        load_ranker(cross_encoder).score(tiny.queries, tiny, candidates)
        teacher = load_ranker(cross_encoder)
        monkeypatch.setattr(teacher, "logits", lambda pairs: pytest.fail("scored again"))
        assert len(teacher.score(tiny.queries, tiny, candidates.top(3))) == len(candidates.top(3))

    @pytest.mark.parametrize("what", ["weights", "length", "prompt"])
    def test_fingerprint_changes_with_what_decides_a_score(self, tiny, cross_encoder, changed, what):
        prints = [load_ranker(model).fingerprint(tiny) for model in (cross_encoder, changed(cross_encoder, what))]
        assert prints[0] != prints[1]

    def test_fingerprint_does_not_change_with_the_name(self, tiny, cross_encoder, changed):
        same = load_ranker(changed(cross_encoder, "nothing"))
        same.name = "cross-encoder:another"
        assert same.fingerprint(tiny) == load_ranker(cross_encoder).fingerprint(tiny)

    def test_half_precision_is_another_teacher_and_has_a_fingerprint(self, tiny, cross_encoder, changed):
        half = load_ranker(changed(cross_encoder, "nothing").bfloat16())
        assert half.owner.settings["dtype"] == "bfloat16"
        assert half.fingerprint(tiny) != load_ranker(cross_encoder).fingerprint(tiny)

    def test_remaining_counts_pairs_down(self, tiny, cross_encoder, candidates, tmp_path):
        some = candidates.select(candidates.query_ids[:3])
        (work,) = remaining(tiny, candidates, [cross_encoder], store=tmp_path).values()
        assert (work.items, work.unit) == (len(candidates), "pairs")
        assert work.seconds > 0
        score(tiny, some, [cross_encoder], store=tmp_path)
        (work,) = remaining(tiny, candidates, [cross_encoder], store=tmp_path).values()
        assert work.items == len(candidates) - len(some)
        score(tiny, candidates, [cross_encoder], store=tmp_path)
        (work,) = remaining(tiny, candidates, [cross_encoder], store=tmp_path).values()
        assert (work.items, work.seconds) == (0, 0.0)

    def test_a_store_of_another_version_is_refused(self, tiny, cross_encoder, changed, candidates, tmp_path):
        score(tiny, candidates, [cross_encoder], store=tmp_path)
        with pytest.raises(UserError, match="belongs to another teacher"):
            score(tiny, candidates, [changed(cross_encoder, "weights")], store=tmp_path)


class TestDense:
    def test_gives_the_cosines(self, tiny, bi_encoder, tiny_model, candidates):
        queries, documents = zip(*pairs_of(tiny, candidates), strict=True)
        vectors = [bi_encoder.encode(list(side), show_progress_bar=False) for side in (queries, documents)]
        wanted = (vectors[0] * vectors[1]).sum(axis=1)
        found = load_ranker(f"dense:{tiny_model}").score(tiny.queries, tiny, candidates)
        np.testing.assert_allclose(found.scores, wanted, atol=1e-5)
        assert found.name == f"dense:{tiny_model}"

    def test_applies_the_prompts_of_each_side(self, tiny, bi_encoder, changed, candidates):
        model = changed(bi_encoder, "nothing")
        model.prompts = {"query": "heart ", "document": "star "}
        queries, documents = zip(*pairs_of(tiny, candidates), strict=True)
        left = model.encode([f"heart {text}" for text in queries], prompt="", show_progress_bar=False)
        right = model.encode([f"star {text}" for text in documents], prompt="", show_progress_bar=False)
        found = load_ranker(model).score(tiny.queries, tiny, candidates)
        np.testing.assert_allclose(found.scores, (left * right).sum(axis=1), atol=1e-5)

    @pytest.mark.parametrize("what", ["weights", "length", "prompt"])
    def test_fingerprint_changes_with_what_decides_a_score(self, tiny, bi_encoder, changed, what):
        prints = [load_ranker(model).fingerprint(tiny) for model in (bi_encoder, changed(bi_encoder, what))]
        assert prints[0] != prints[1]

    def test_fingerprint_does_not_change_with_the_name(self, tiny, bi_encoder, tiny_model):
        named, held = load_encoder(f"dense:{tiny_model}"), load_encoder(bi_encoder)
        held.name = "dense:another"
        assert load_ranker(named).fingerprint(tiny) == load_ranker(held).fingerprint(tiny)

    def test_remaining_counts_texts_of_both_sides(self, tiny, bi_encoder, candidates, tmp_path):
        (work,) = remaining(tiny, candidates, [bi_encoder], store=tmp_path).values()
        distinct = len({q for q, _ in pairs_of(tiny, candidates)}) + len({d for _, d in pairs_of(tiny, candidates)})
        assert (work.items, work.unit) == (distinct, "texts")
        score(tiny, candidates, [bi_encoder], store=tmp_path)
        (work,) = remaining(tiny, candidates, [bi_encoder], store=tmp_path).values()
        assert work.items == 0


class TestLexical:
    def test_equals_bm25s_itself(self, tiny, candidates):
        import Stemmer

        bm25s = load_bm25s()

        def terms(texts):
            return bm25s.tokenize(
                texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False
            )

        index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        index.index(terms(tiny.documents.texts), show_progress=False)
        found = load_ranker("bm25").score(tiny.queries, tiny, candidates)
        for query, ids, scores in found:
            known = [term for term in terms([tiny.queries[query]])[0] if term in index.vocab_dict]
            wanted = index.get_scores(known) if known else np.zeros(len(tiny.documents))
            np.testing.assert_allclose(scores, wanted[tiny.documents.positions(ids)], rtol=1e-6)
        assert (found.scores == 0).any()
        assert (found.scores > 0).any()

    def test_fingerprint_changes_with_the_corpus_and_nothing_is_left_to_do(self, tiny, candidates):
        from retrodistill.data import Collection

        other = Collection.from_parts("other", {"d": "text"}, {"q": "text"}, {})
        assert load_ranker("bm25").fingerprint(tiny) != load_ranker("bm25").fingerprint(other)
        assert remaining(tiny, candidates, ["bm25"])["bm25"].items == 0


class TestRecorded:
    def test_gives_what_was_recorded(self, tiny, candidates, tmp_path):
        recorded = candidates.with_scores(np.arange(len(candidates)) / 7)
        write_run(recorded, tmp_path / "e5.run")
        (found,) = score(tiny, candidates.top(2), [f"run:{tmp_path / 'e5.run'}"])
        wanted = recorded.to_dict()
        assert found.to_dict() == {
            q: {d: wanted[q][d] for d in docs} for q, docs in candidates.top(2).to_dict().items()
        }
        assert remaining(tiny, candidates, [recorded]) == {
            "candidates": load_ranker(recorded).remaining(tiny.queries, tiny, candidates)
        }

    def test_a_missing_pair_is_refused_and_never_0(self, tiny, candidates):
        with pytest.raises(
            UserError, match=r"has no score for \d+ of \d+ candidates, first query 't?q?\d+' with document"
        ):
            score(tiny, candidates, [candidates.top(4)])

    def test_rows_of_other_queries_and_documents_make_no_difference(self, tiny, candidates):
        rows = candidates.to_dict()
        more = Run.from_dict({**{query: {"nowhere": 99.0, **own} for query, own in rows.items()}, "z": {"d0": 1.0}})
        assert score(tiny, candidates, [more])[0].to_dict() == score(tiny, candidates, [candidates])[0].to_dict()
        assert score(tiny, more, ["bm25"])[0].to_dict() == score(tiny, candidates, ["bm25"])[0].to_dict()
        queries = tiny.queries.select(candidates.query_ids)
        found = load_ranker(more).search(queries, tiny, 3)
        assert found.to_dict() == load_ranker(candidates).search(queries, tiny, 3).to_dict()
        assert mine(tiny, queries, [more], 3).to_dict() == mine(tiny, queries, [candidates], 3).to_dict()

    def test_the_log_counts_them_once(self, tiny, capsys):
        set_quiet(False)
        ranker = load_ranker(Run.from_dict({"q0": {"nowhere": 1.0, "d0": 2.0}, "z": {"d0": 1.0}}))
        for _ in range(2):
            ranker.search(tiny.queries.select(["q0"]), tiny, 3)
        assert [line for line in capsys.readouterr().err.splitlines() if "'nowhere'" in line and "'z'" in line][
            1:
        ] == []

    def test_unknown_ids_alone_are_refused(self, tiny, candidates):
        with pytest.raises(UserError, match="'nowhere'"):
            load_ranker(Run.from_dict({"q0": {"nowhere": 1.0}})).search(tiny.queries, tiny, 3)
        with pytest.raises(UserError, match="'nowhere'"):
            score(tiny, Run.from_dict({"q0": {"nowhere": 1.0}}), ["bm25"])

    def test_fingerprint_is_of_the_rows(self, tiny, candidates):
        first, renamed = RecordedRanker(candidates), RecordedRanker(candidates.renamed("other"), "run:other")
        assert first.fingerprint(tiny) == renamed.fingerprint(tiny)
        other = RecordedRanker(candidates.with_scores(candidates.scores + 1))
        assert first.fingerprint(tiny) != other.fingerprint(tiny)


class TestEveryTeacher:
    @pytest.fixture(params=["bm25", "dense", "cross-encoder", "ensemble"])
    def teacher(self, request, bi_encoder, cross_encoder):
        if request.param == "ensemble":
            return Ensemble([load_ranker("bm25"), load_ranker(bi_encoder)])
        return load_ranker({"dense": bi_encoder, "cross-encoder": cross_encoder}.get(request.param, request.param))

    def test_follows_the_protocol_and_keeps_the_candidates(self, tiny, teacher, candidates):
        assert isinstance(teacher, Ranker)
        assert load_ranker(teacher) is teacher
        found = teacher.score(tiny.queries, tiny, candidates)
        assert found.to_dict().keys() == candidates.to_dict().keys()
        assert {q: set(d) for q, d in found.to_dict().items()} == {q: set(d) for q, d in candidates.to_dict().items()}
        assert found.name == teacher.name

    def test_the_order_of_the_candidates_does_not_matter(self, tiny, teacher, candidates):
        order = np.random.default_rng(0).permutation(len(candidates))
        shuffled = Run.from_table(candidates.table.take(order))
        one, other = (teacher.score(tiny.queries, tiny, run).to_dict() for run in (candidates, shuffled))
        assert {q: pytest.approx(d, abs=1e-6) for q, d in one.items()} == other

    def test_unknown_ids_are_refused(self, tiny, teacher):
        for run in (Run.from_dict({"nobody": {"d1": 1.0}}), Run.from_dict({"q1": {"nowhere": 1.0}})):
            with pytest.raises(UserError, match=r"1 (query|document) ids are not in the collection"):
                teacher.score(tiny.queries, tiny, run)

    def test_no_candidates_have_no_scores(self, tiny, teacher):
        assert len(teacher.score(tiny.queries, tiny, Run.from_dict({}))) == 0


class TestEnsemble:
    def members(self, bi_encoder):
        return [load_ranker("bm25"), load_ranker(bi_encoder)]

    @pytest.mark.parametrize("method", ["zscore", "zscore-per-query", "minmax", "reciprocal-rank"])
    def test_scores_are_the_fused_scores_of_the_members(self, tiny, bi_encoder, candidates, method):
        members = self.members(bi_encoder)
        runs = [member.score(tiny.queries, tiny, candidates) for member in members]
        found = Ensemble(members, [0.3, 0.7], method).score(tiny.queries, tiny, candidates)
        assert found.to_dict() == fuse(runs, [0.3, 0.7], method).to_dict()

    def test_over_the_corpus_it_is_the_z_score_of_a_run_of_all_pairs(self, tiny, bi_encoder):
        queries = tiny.split("test")
        ensemble = Ensemble(self.members(bi_encoder), [0.3, 0.7])
        matrix = ensemble.corpus_scores(queries, tiny).of(np.arange(len(queries)))
        assert (matrix.shape, matrix.dtype) == ((len(queries), len(tiny.documents)), np.float32)
        run = ensemble.score(queries, tiny, every_pair(tiny, queries))
        wanted = np.empty(matrix.shape)
        for query, ids, scores in run:
            wanted[queries.position(query), tiny.documents.positions(ids)] = scores
        np.testing.assert_allclose(matrix, wanted, atol=2e-5)

    def test_retrieves_the_best_of_the_united_candidates(self, tiny, bi_encoder):
        queries = tiny.split("test")
        ensemble = Ensemble(self.members(bi_encoder), [0.3, 0.7], depth=60)
        found = ensemble.search(queries, tiny, 5)
        all_scores = ensemble.score(queries, tiny, every_pair(tiny, queries)).top(5)
        assert {q: list(ids) for q, ids, _ in found} == {q: list(ids) for q, ids, _ in all_scores}

    def test_fingerprint_depends_on_all_that_decides_and_not_on_the_name(self, tiny, bi_encoder):
        members = self.members(bi_encoder)
        calibrations = [fit_calibration("zscore", Run.from_dict({"q": {"a": 0.0, "b": float(n)}})) for n in (1, 2)]
        ensembles = [
            Ensemble(members),
            Ensemble(members[:1]),
            Ensemble(members, [0.3, 0.7]),
            Ensemble(members, method="minmax"),
            Ensemble(members, method="zscore"),
            Ensemble(members, method="zscore", calibrations=calibrations),
        ]
        assert len({ensemble.fingerprint(tiny) for ensemble in ensembles}) == len(ensembles)
        assert Ensemble(members, name="other").fingerprint(tiny) == ensembles[0].fingerprint(tiny)

    def test_remaining_adds_up(self, tiny, bi_encoder, cross_encoder, candidates):
        members = [load_ranker(bi_encoder), load_ranker(cross_encoder), load_ranker("bm25")]
        works = [member.remaining(tiny.queries, tiny, candidates) for member in members]
        work = Ensemble(members).remaining(tiny.queries, tiny, candidates)
        assert (work.items, work.unit) == (sum(one.items for one in works), "pairs/texts")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"weights": [1.0]}, "1 weights .* for 2 runs"),
            ({"weights": [0, 0]}, "none below 0, not all 0"),
            ({"method": "z-score"}, "unknown fusion method 'z-score'. Did you mean 'zscore'?"),
            ({"calibrations": []}, "0 calibrations for 2 runs"),
        ],
    )
    def test_what_does_not_fit_is_refused_before_anything_is_scored(self, given, message):
        with pytest.raises(UserError, match=message):
            Ensemble([load_ranker("bm25")] * 2, **given)

    def test_no_members_or_none_that_searches(self, tiny, cross_encoder):
        with pytest.raises(UserError, match="no teacher was given"):
            Ensemble([])
        with pytest.raises(UserError, match="no member of the ensemble can search"):
            Ensemble([load_ranker(cross_encoder)]).search(tiny.queries, tiny, 5)


class TestCorpusScores:
    def test_of_each_kind_are_its_scores_of_all_pairs(self, tiny, bi_encoder):
        queries = tiny.split("test")
        for teacher in (load_ranker("bm25"), load_ranker(bi_encoder)):
            scores = teacher.corpus_scores(queries, tiny)
            matrix = np.concatenate(list(scores.blocks(np.arange(len(queries)))))
            for query, ids, wanted in teacher.score(queries, tiny, every_pair(tiny, queries)):
                rows = tiny.documents.positions(ids)
                np.testing.assert_allclose(matrix[queries.position(query), rows], wanted, atol=1e-5)

    def test_bm25_products_are_bm25s_own_scores_repeated_terms_and_unknown_ones_too(self, tiny):
        bm25 = BM25(tiny.documents)
        texts = [f"{tiny.documents.texts[3]} {tiny.documents.texts[3]} qwxyz", "qwxyz", ""]
        found = bm25.products(texts).of(np.arange(3))
        np.testing.assert_allclose(found, np.stack(list(bm25.scores(texts))), rtol=1e-5)

    @pytest.mark.parametrize("name", ["bm25", "dense", "ensemble"])
    def test_some_documents_and_pairs_are_a_part_of_all(self, tiny, bi_encoder, name):
        members = {"bm25": load_ranker("bm25"), "dense": load_ranker(bi_encoder)}
        teacher = members.get(name) or Ensemble(list(members.values()), [0.3, 0.7])
        scores, rows = teacher.corpus_scores(tiny.queries, tiny), np.array([2, 0, 2])
        documents = np.array([7, 3, 3])
        whole = scores.of(rows)
        np.testing.assert_allclose(scores.of(rows, documents), whole[:, documents], atol=1e-5)
        np.testing.assert_allclose(scores.pairs(rows, documents), whole[[0, 1, 2], documents], atol=1e-5)

    def test_of_a_large_corpus_a_sample_tells_mean_and_deviation(self, monkeypatch):
        monkeypatch.setattr(corpus_module, "REFERENCE", 500)
        generator = np.random.default_rng(0)
        first, second = (generator.normal(5, 3, (4, 2000)).astype(np.float32) for _ in range(2))
        fused = MeanOfZScores([table(first), table(second)], [1, 3])
        sample = fused.reference()
        assert len(sample) == 500
        assert (np.diff(sample) > 0).all()
        parts = [
            (each - each[:, sample].mean(axis=1)[:, None]) / each[:, sample].std(axis=1)[:, None]
            for each in (first, second)
        ]
        np.testing.assert_allclose(fused.of(np.arange(4)), 0.25 * parts[0] + 0.75 * parts[1], atol=1e-5)

    def test_a_teacher_of_pairs_is_refused(self, tiny, cross_encoder):
        with pytest.raises(UserError, match=r"scores pairs and cannot score a whole corpus; set candidates.depth"):
            load_ranker(cross_encoder).corpus_scores(tiny.queries, tiny)
        with pytest.raises(UserError, match="scores pairs and cannot score a whole corpus"):
            Ensemble([load_ranker("bm25"), load_ranker(cross_encoder)]).corpus_scores(tiny.queries, tiny)

    def test_another_fusion_is_refused(self, tiny):
        with pytest.raises(UserError, match="fusion 'minmax' cannot score a whole corpus; use 'zscore-per-query'"):
            Ensemble([load_ranker("bm25")], method="minmax").corpus_scores(tiny.queries, tiny)

    def test_mean_of_zscores_is_numpys_at_any_scale_and_0_for_flat_rows(self):
        generator = np.random.default_rng(0)
        first = generator.normal(1e4, 1, (3, 500)).astype(np.float32)
        second = generator.normal(0, 1e-4, (3, 500)).astype(np.float32)
        second[1] = 0.1
        double = [matrix.astype(np.float64) for matrix in (first, second)]
        z = [(m - m.mean(1, keepdims=True)) / np.maximum(m.std(1, keepdims=True), 1e-30) for m in double]
        z[1][1] = 0
        found = MeanOfZScores([table(first), table(second)], [1, 3]).of(np.arange(3))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, 0.25 * z[0] + 0.75 * z[1], atol=1e-5)
        assert (MeanOfZScores([table(second)], [2]).of(np.arange(3))[1] == 0).all()


class TestLoading:
    def test_a_list_is_wanted(self, tiny, candidates):
        with pytest.raises(UserError, match=r"teachers='bm25': give a list, e.g. \['bm25'\]"):
            score(tiny, candidates, "bm25")

    def test_a_wrong_name_fails_before_the_first_teacher_works(self, tiny, candidates, monkeypatch):
        monkeypatch.setattr("retrodistill.rankers.bm25.BM25Ranker.score", lambda *_: pytest.fail("worked"))
        with pytest.raises(UserError, match=r"unknown model kind 'bm52'. Did you mean 'bm25'?"):
            score(tiny, candidates, ["bm25", "bm52"])

    @pytest.mark.parametrize("name", ["dense:./nowhere", "cross-encoder:/no/such/folder"])
    def test_a_model_that_is_not_there(self, name):
        with pytest.raises(UserError, match=r"no model folder .*; give an existing folder or a hub name"):
            load_ranker(name)

    def test_queries_of_ones_own_may_be_none(self, tiny):
        from retrodistill.data.texts import Texts

        with pytest.raises(UserError, match="1 queries"):
            score(tiny, Run.from_dict({"q1": {"d1": 1.0}}), ["bm25"], queries=Texts.from_pairs([]))


class TestEnsembleOnOneQuery:
    def test_a_member_that_finds_nothing_has_no_say(self, tiny, tiny_model):
        from retrodistill.data import Texts

        asked = Texts.from_pairs([("q", "xylograph")])
        dense = load_ranker(f"dense:{tiny_model}")
        found = Ensemble([load_ranker("bm25"), dense], [0.3, 0.7]).search(asked, tiny, 5)
        alone = Ensemble([dense]).search(asked, tiny, 5)
        assert found.document_ids.tolist() == alone.document_ids.tolist()


class TestModelsWithoutAHead:
    def test_a_bi_encoder_is_no_cross_encoder(self, tiny_model):
        with pytest.raises(UserError, match=r"has no head that scores pairs, .* name it 'dense:"):
            load_ranker(f"cross-encoder:{tiny_model}")

    def test_a_plain_transformer_is_none_either(self, tiny_model, tmp_path):
        from transformers import AutoModel, AutoTokenizer

        for part in (AutoModel, AutoTokenizer):
            part.from_pretrained(tiny_model).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"has no head that scores pairs"):
            load_ranker(f"cross-encoder:{tmp_path}")
