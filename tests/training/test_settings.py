import pydantic
import pytest

from retrodistill.training.settings import (
    CandidateSettings,
    GroupSettings,
    ObjectiveSettings,
    StageSettings,
    TrainingSettings,
)


class TestStages:
    def test_a_bare_name_is_an_objective_with_its_defaults(self):
        named, spelled = StageSettings(objectives="kl"), StageSettings(objectives=[{"name": "kl"}])
        assert named == spelled
        assert named.objectives[0].student_temperature == 0.05

    def test_it_knows_what_it_needs(self):
        assert StageSettings(objectives=["leaf", "kl"]).needs_lists
        assert not StageSettings(objectives="leaf").needs_lists
        assert StageSettings(objectives="contrastive").is_contrastive
        assert not StageSettings(objectives="kl").is_contrastive

    def test_settings_do_not_change(self):
        with pytest.raises(pydantic.ValidationError, match=r"frozen"):
            StageSettings(objectives="kl").train = "both_encoders"


class TestMistakes:
    def test_an_unknown_objective_is_answered_with_the_nearest(self):
        with pytest.raises(pydantic.ValidationError, match=r"unknown objective 'margin'. Did you mean 'margin-mse'\?"):
            ObjectiveSettings(name="margin")

    def test_an_unknown_sampler_too(self):
        with pytest.raises(pydantic.ValidationError, match=r"unknown sampler 'stratify'. Did you mean 'stratified'\?"):
            GroupSettings(sampler="stratify")

    @pytest.mark.parametrize("source", ["bm26", "cross-encoder:x", "prett:x", "tk:x", "judgments:train", "dense"])
    def test_sources_that_cannot_propose(self, source):
        with pytest.raises(pydantic.ValidationError, match=r"unknown model kind|cannot search a corpus|has no name"):
            CandidateSettings(sources=["bm25", source])

    @pytest.mark.parametrize("depth", [0, -5, "some", 1.5])
    def test_invalid_depths(self, depth):
        with pytest.raises(pydantic.ValidationError):
            CandidateSettings(depth=depth)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("epochs", 0),
            ("batch_size", 0),
            ("learning_rate", 0),
            ("learning_rate", float("inf")),
            ("learning_rate", float("nan")),
            ("warmup", 1.0),
            ("schedule", "steps"),
            ("max_steps", -1),
            ("weight_decay", -0.1),
            ("epoch", 3),
        ],
    )
    def test_values_outside_their_range(self, key, value):
        with pytest.raises(pydantic.ValidationError, match=key):
            TrainingSettings(**{key: value})


def test_an_objective_may_have_a_temperature_of_its_own():
    def temperatures(*objectives):
        stage = StageSettings.model_validate({"objectives": list(objectives)})
        again = StageSettings.model_validate(stage.model_dump(mode="json"))
        assert again == stage
        return [term.student_temperature for term in stage.objectives]

    assert temperatures("mi-alpha", "leaf", "kl") == [0.25, 0.05, 0.05]
    assert temperatures({"name": "mi-alpha", "student_temperature": 0.4}) == [0.4]
