import numpy as np
import pytest

from retrodistill.candidates.mining import mine
from retrodistill.core.errors import UserError
from retrodistill.objectives.lists import check_trainable
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import train_student
from retrodistill.training.training_data import TrainingData


class TestScores:
    def test_they_are_the_grades_and_0_where_nobody_judged(self, tiny):
        queries = tiny.split("train")
        pool = mine(tiny, queries, ["bm25"], 10)
        scored = load_ranker("judgments:train").score(queries, tiny, pool)
        grades = tiny.relevance("train").to_dict()
        for query, documents, scores in scored:
            assert [grades[query].get(document, 0) for document in documents] == scores.tolist()
        assert {0.0, 1.0} == set(scored.scores)

    def test_queries_of_other_splits_teach_nothing(self, tiny):
        queries = tiny.split("dev")
        scored = load_ranker("judgments:train").score(queries, tiny, mine(tiny, queries, ["bm25"], 10))
        assert not np.any(scored.scores)
        with pytest.raises(UserError):
            check_trainable(scored)

    def test_others_judgments_are_another_teacher(self, tiny):
        prints = {load_ranker(f"judgments:{split}").fingerprint(tiny) for split in ("train", "dev")}
        assert len(prints) == 2


class TestRefusals:
    def test_what_is_measured_teaches_nothing(self):
        with pytest.raises(UserError, match=r"^judgments:test would teach what is measured"):
            load_ranker("judgments:test")

    def test_a_split_without_any(self, tiny):
        with pytest.raises(UserError, match=r"has no judgments for split 'trian'"):
            load_ranker("judgments:trian").fingerprint(tiny)

    def test_they_find_nothing(self):
        with pytest.raises(UserError, match=r"^model judgments:train scores pairs and cannot search"):
            load_ranker("judgments:train", needs="search")


class TestTraining:
    def test_a_cross_encoder_learns_from_them_and_teaches(self, tiny, tiny_model, tiny_cross_encoder, tmp_path):
        stage = {
            "objectives": {"name": "kl", "student_temperature": 1.0},
            "train": "both_encoders",
            "texts": {"titles": False, "sentences": 0},
            "candidates": {"sources": ["bm25"], "depth": 10},
            "groups": {"documents": 4},
            "training": {"epochs": 1, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        }
        settings = {"model": f"cross-encoder:{tiny_cross_encoder}", "stages": [stage], "control": None}
        queries, teacher = tiny.split("train"), load_ranker("judgments:train")
        space = load_ranker(f"dense:{tiny_model}").documents
        data = TrainingData(tiny, queries, teacher, space, tmp_path / "work")
        made = train_student("student", StudentSettings.model_validate(settings), data, tmp_path / "student")
        assert made.curves["losses"][0]["loss"] > 0
        pool = mine(tiny, queries, ["bm25"], 3)
        scored = load_ranker(f"cross-encoder:{tmp_path / 'student'}").score(queries, tiny, pool)
        assert len(np.unique(scored.scores)) > len(pool) // 2
