import numpy as np
import pytest

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.core.locks import exclusive
from retrodistill.encoders import load_encoder
from retrodistill.encoders.vectors import exact_search
from retrodistill.evaluation import evaluate_run
from retrodistill.training.settings import StageSettings, TrainingSettings

QUICK = TrainingSettings(epochs=1, batch_size=32, learning_rate=0.01)


@pytest.fixture
def space(tiny_model):
    return f"dense:{tiny_model}"


@pytest.fixture
def target(tiny, space):
    """Fused scores of BM25 and the space's model for the training queries."""
    pool = rd.mine(tiny, "train", ["bm25", space], depth=10)
    return rd.fuse(rd.score(tiny, pool, ["bm25", space]), method="zscore-per-query")


class TestTheWayThrough:
    def test_the_ten_lines_of_the_design(self, tiny_folder, space, tmp_path):
        tiny = rd.load_collection(tiny_folder)
        pool = rd.mine(tiny, "train", ["bm25", space], depth=10)
        scores = rd.score(tiny, pool, ["bm25", space], store=tmp_path / "scores")
        target = rd.fuse(scores)
        student = rd.distill(
            tiny, target, document_encoder=space, objective="kl", training=QUICK, out=tmp_path / "student"
        )
        index = rd.build_index(tiny, documents=space, queries=student, factory="SQ8")
        index.save(tmp_path / "index")
        found = rd.load_index(tmp_path / "index").search("star planet", k=3)
        results = rd.evaluate({"teacher": space, "student": index}, tiny, "test")
        assert len(found) == 3
        assert set(results.means) == {"teacher", "student"}
        assert "ndcg@10" in map(str.lower, results.means["student"])

    def test_every_public_name_resolves(self):
        assert len(rd.__all__) <= 18
        assert set(dir(rd)) == set(rd.__all__)
        assert all(getattr(rd, name) is not None for name in rd.__all__)
        with pytest.raises(AttributeError, match=r"has no attribute 'nothing'"):
            rd.nothing  # noqa: B018


class TestDistill:
    def test_training_brings_the_student_towards_the_target(self, tiny, space, target, tmp_path):
        settings = TrainingSettings(epochs=20, batch_size=16, learning_rate=0.05)
        student = rd.distill(tiny, target, document_encoder=space, training=settings, out=tmp_path / "student")
        queries, documents = (
            tiny.queries.select(target.query_ids),
            load_encoder(space).encode(tiny.documents.texts, "document"),
        )

        def agreement(encoder):
            rows = exact_search(encoder.encode(queries.texts, "query"), documents, 5)[0]
            best = {query: set(found) for query, found, _ in target.top(5)}
            return np.mean(
                [
                    len(best[query] & {tiny.documents.ids[row] for row in found}) / 5
                    for query, found in zip(queries.ids, rows, strict=True)
                ]
            )

        assert agreement(student) > agreement(load_encoder(space)) + 0.1

    def test_the_student_searches_the_space_and_knows_its_place(self, tiny, space, target, tmp_path):
        student = rd.distill(tiny, target, document_encoder=space, training=QUICK, out=tmp_path / "student")
        assert student.name == f"static:{tmp_path / 'student'}"
        assert student.query_space == load_encoder(space).document_space

    def test_the_same_call_again_only_loads(self, tiny, space, target, tmp_path, monkeypatch):
        first = rd.distill(tiny, target, document_encoder=space, training=QUICK, out=tmp_path / "student")
        monkeypatch.setattr("retrodistill.training.stages.train", lambda *_, **__: pytest.fail("trained again"))
        again = rd.distill(tiny, target, document_encoder=space, training=QUICK, out=tmp_path / "student")
        assert again.weights_digest == first.weights_digest

    def test_a_curriculum_of_stages(self, tiny, space, tmp_path):
        stages = [
            StageSettings(objectives="leaf", training=QUICK),
            StageSettings(objectives=["kl", "margin-mse"], training=QUICK),
        ]
        student = rd.distill(
            tiny, space, student={"model": "static", "stages": stages}, document_encoder=space, out=tmp_path / "student"
        )
        assert [stage["objectives"][0]["name"] for stage in student.student.settings["stages"]] == ["leaf", "kl"]

    def test_nothing_is_left_next_to_the_student(self, tiny, space, target, tmp_path):
        rd.distill(tiny, target, document_encoder=space, training=QUICK, out=tmp_path / "made" / "student")
        assert [path.name for path in (tmp_path / "made").iterdir()] == ["student"]

    def test_a_dense_student_with_both_encoders_trained(self, tiny, space, tiny_model, target, tmp_path):
        student = rd.distill(
            tiny,
            target,
            student=f"dense:{tiny_model}",
            document_encoder=space,
            training={**QUICK.model_dump(), "train": "both_encoders"},
            out=tmp_path / "s",
        )
        assert student.query_space == student.document_space != load_encoder(space).document_space

    def test_stages_decide_what_encodes_the_documents(self, tiny, space, tiny_model, tmp_path):
        stages = [
            StageSettings(objectives="kl", train="both_encoders", candidates={"depth": 5}, training={"max_steps": 1})
        ]
        student = rd.distill(
            tiny,
            space,
            student={"model": f"dense:{tiny_model}", "stages": stages},
            document_encoder=space,
            out=tmp_path / "student",
        )
        assert student.query_space == student.document_space


class TestKindsOfStudents:
    @pytest.fixture
    def made(self, tiny, target, space, tmp_path):
        def made(student, **options):
            options = {"training": {"max_steps": 1}, **options}
            return rd.distill(
                tiny, target, student=student, document_encoder=space, out=tmp_path / "student", **options
            )

        return made

    @pytest.mark.parametrize(
        ("kind", "train", "chosen"),
        [
            ("multi-vector", "head", {"dimension": 16}),
            ("sparse", "head", {"queries": "inference-free", "lexical_terms": True}),
            ("cross-encoder", "both_encoders", {}),
            ("prett", "head", {}),
            ("tk", "head", {}),
        ],
    )
    def test_defaults_fit_the_kind(self, made, tiny_model, kind, train, chosen):
        settings = made(f"{kind}:{tiny_model}").student.settings
        assert settings["documents"] == "student"
        assert settings["stages"][0]["train"] == train
        assert {key: settings[key] for key in chosen} == chosen
        assert settings["stages"][0]["training"]["batch_size"] in (16, 32)

    def test_given_settings_are_kept(self, made, tiny_model):
        student = made(
            {"model": f"multi-vector:{tiny_model}", "dimension": 8},
            objective={"name": "kl", "student_temperature": 0.5},
            training={"max_steps": 1, "train": "both_encoders"},
        )
        assert student.student.settings["dimension"] == student.dimension == 8
        assert student.student.settings["stages"][0]["objectives"][0]["student_temperature"] == 0.5

    def test_a_sparse_student_may_have_a_model_for_queries(self, made, tiny_model):
        settings = made({"model": f"sparse:{tiny_model}", "queries": "model"}).student.settings
        assert (settings["stages"][0]["train"], settings["lexical_terms"]) == ("both_encoders", False)

    def test_a_sparse_encoder_is_trained_further(self, made, tiny_model, tmp_path):
        made({"model": f"sparse:{tiny_model}"})
        folder = (tmp_path / "student").rename(tmp_path / "first")
        settings = made(f"sparse:{folder}").student.settings
        assert (settings["queries"], settings["stages"][0]["train"]) == ("inference-free", "both_encoders")


class TestDistillsMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"student": "bm25"}, "distill: model: a student starts from 'static', 'dense:NAME', "),
            ({"student": "splade:x"}, "distill: model: a student starts from 'static', 'dense:NAME', 'sparse:NAME', "),
            ({"student": {"dimension": 8}}, "distill: a student needs a model, e.g. student={'model': "),
            ({"student": {"model": "static", "stages": []}}, "distill: student.stages must be a list of at least one"),
            (
                {"student": {"model": "static", "stages": ["kl"]}},
                "distill: stages.0: Input should be a valid dictionary",
            ),
            (
                {"student": {"model": "static", "stages": [{"objective": "kl"}]}},
                "distill: stages.0.objectives: Field required",
            ),
            (
                {"student": {"model": "static", "stages": [{"objectives": "kl"}]}, "training": {"epochs": 2}},
                "distill: training.epochs: set it in each of student.stages",
            ),
            ({"student": {"model": "static", "control": None}}, "distill: student.control is only for recipes"),
            ({"training": {"step": 3}}, "distill: unknown key 'step'. Did you mean 'max_steps'?"),
            ({"student": {"model": "static", "width": 3}}, "distill: unknown key 'width'"),
            ({"student": "sparse:none/such"}, "model 'none/such' is not a folder here"),
            ({"objective": "kll"}, "distill: stages.0.objectives.0.name: unknown objective 'kll'. Did you mean 'kl'?"),
            (
                {"training": {"train": "sideways"}},
                "distill: stages.0.train: Input should be 'query_encoder', 'both_encoders'",
            ),
            ({"document_encoder": "bm25"}, "model bm25 is not an encoder"),
            ({"training": {"queries": "holdout"}}, "collection tiny0 has no split 'holdout'"),
            ({"objective": []}, "distill: stages.0.objectives: List should have at least 1 item"),
        ],
    )
    def test_each_is_one_line_before_any_work(self, tiny, target, space, tmp_path, options, message):
        with pytest.raises(UserError) as error:
            rd.distill(tiny, target, **{"document_encoder": space, "out": tmp_path / "student", **options})
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "student").exists()

    def test_a_target_with_one_candidate_per_query(self, tiny, space, target, tmp_path):
        with pytest.raises(UserError, match=r"every query has one candidate, and a list objective needs at least two"):
            rd.distill(tiny, target.top(1), document_encoder=space, out=tmp_path / "student")

    def test_a_target_whose_scores_are_all_equal(self, tiny, space, target, tmp_path):
        with pytest.raises(UserError, match=r"equal"):
            rd.distill(tiny, target.with_scores(np.ones(len(target))), document_encoder=space, out=tmp_path / "student")

    def test_a_target_of_unknown_queries(self, tiny, space, tmp_path):
        with pytest.raises(UserError, match=r"lacks 1 queries \('who'\)"):
            rd.distill(
                tiny,
                rd.Run.from_dict({"who": {"d0": 1.0, "d1": 2.0}}),
                document_encoder=space,
                out=tmp_path / "student",
            )

    def test_the_folder_of_something_else(self, tiny, space, target, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(UserError, match=r"holds other files .* would be lost"):
            rd.distill(tiny, target, document_encoder=space, out=tmp_path)


class TestEvaluate:
    def test_it_is_the_measures_of_the_run(self, tiny, space):
        result = rd.evaluate({"space": space}, tiny, "test", measures=["ndcg@5", "recall@20"])
        measured = evaluate_run(result.runs["space"], tiny.relevance("test").to_dict(), ["ndcg@5", "recall@20"])
        assert result.per_query["space"].equals(measured)
        assert result.means["space"]["ndcg@5"] == pytest.approx(np.mean(measured["ndcg@5"].to_numpy()))

    def test_a_single_system(self, tiny):
        assert list(rd.evaluate("bm25", tiny).means) == ["bm25"]

    def test_every_kind_of_system(self, tiny, space, tiny_model):
        run = rd.Run.from_dict({"t0": {"d0": 1.0}})
        systems = {"a": run, "b": rd.build_index(tiny, space), "c": load_encoder(space), "d": "bm25"}
        means = rd.evaluate(systems, tiny).means
        assert means["b"] == pytest.approx(means["c"])
        assert means["a"]["recall@100"] < means["d"]["recall@100"]

    def test_depth_is_cut_to_the_corpus(self, tiny):
        assert len(rd.evaluate("bm25", tiny, depth=3).runs["bm25"]) <= 3 * 12

    @pytest.mark.parametrize(
        ("systems", "split", "message"),
        [
            ({}, "test", "no system to evaluate; give at least one"),
            ({"x": "cross-encoder:y"}, "test", "model cross-encoder:y scores pairs and cannot search a corpus"),
            ({"x": 5}, "test", "an encoder cannot be made from int"),
            ("bm25", "holdout", "collection tiny0 has no split 'holdout'"),
            ("bm25", "all", "collection tiny0 has no judgments for split 'all'"),
        ],
    )
    def test_mistakes(self, tiny, systems, split, message):
        with pytest.raises(UserError) as error:
            rd.evaluate(systems, tiny, split)
        assert str(error.value).startswith(message)

    def test_an_unknown_measure(self, tiny):
        with pytest.raises(UserError, match=r"^unknown measure 'ndgc@10'. Did you mean 'ndcg@k'\?"):
            rd.evaluate("bm25", tiny, measures=["ndgc@10"])


class TestWhatIsTrainedOn:
    def test_a_recorded_run_of_test_queries_alone_is_refused(self, tiny, tiny_model, tmp_path):
        run = rd.mine(tiny, "test", ["bm25"], 10)
        with pytest.raises(UserError, match="none of the"):
            rd.distill(tiny, run, student="static", document_encoder=f"dense:{tiny_model}", out=tmp_path / "student")

    def test_a_recorded_run_of_all_queries_teaches_by_the_training_ones(self, tiny, tiny_model, tmp_path):
        space = f"dense:{tiny_model}"
        for name, split in (("whole", "all"), ("train", "train")):
            run = rd.mine(tiny, split, ["bm25"], 10)
            rd.distill(tiny, run, student="static", document_encoder=space, out=tmp_path / name, training={"epochs": 1})
        made = [rd.load_encoder(f"static:{tmp_path / name}").weights_digest for name in ("whole", "train")]
        assert made[0] == made[1]

    def test_a_second_call_into_the_same_folder_waits_its_turn(self, tiny, tiny_model, tmp_path):
        with exclusive(tmp_path / ".student.work" / ".lock"), pytest.raises(UserError, match="another run is working"):
            rd.distill(
                tiny,
                f"dense:{tiny_model}",
                objective="leaf",
                document_encoder=f"dense:{tiny_model}",
                out=tmp_path / "student",
            )
