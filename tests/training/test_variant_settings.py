"""What a recipe may say of a student's form, and what is refused in one line before any work."""

import pydantic
import pytest

from retrodistill.core.errors import UserError
from retrodistill.recipes import parse_recipe
from retrodistill.recipes.settings import check_truncations
from retrodistill.recipes.student_settings import StudentSettings, comparison_names, without_clusters

DROPPING = {"layers": [1], "keep": 0.5}


def student(model, train="both_encoders", **more):
    stage = {"objectives": "kl", "train": train, **more.pop("stage", {})}
    own = {} if train == "query_encoder" else {"documents": "student"}
    return StudentSettings.model_validate({"model": model, "stages": [stage], **own, **more})


def recipe(students=None, **evaluation):
    plain = {"s": {"model": "static", "stages": [{"objectives": "leaf", "matryoshka": [64]}]}}
    return parse_recipe({"name": "x", "students": students or plain, "evaluation": evaluation})


class TestMistakes:
    @pytest.mark.parametrize(
        ("model", "given", "message"),
        [
            ("dense:x", {"clusters": "C8x32"}, "clusters is for multi-vector students; this one is dense"),
            ("multi-vector:x", {"clusters": "C8"}, None),
            ("multi-vector:x", {"clusters": "8x32"}, "give C8x32 for 8 vectors per query"),
            ("multi-vector:x", {"clusters": {}}, "clusters need the number of vectors of a query or of a document"),
            ("multi-vector:x", {"clusters": {"document": 1.5}}, "document=1.5: give a number of vectors"),
            ("multi-vector:x", {"clustered_from": 2}, "set clusters, e.g. C8x32"),
            ("multi-vector:x", {"clusters": "C25", "clustered_from": 2}, "clustered_from: 2, and there are 1 stages"),
            ("multi-vector:x", {"exits": [1]}, "exits is for dense students; this one is multi-vector"),
            ("dense:x", {"exits": [2, 2]}, "exits must be distinct layers, counted from 1"),
            ("dense:x", {"exits": [0]}, "exits must be distinct layers, counted from 1"),
            ("dense:x", {"project_exits": True}, "project_exits is about exits"),
            ("dense:x", {"exits": [1], "length_adaptive": DROPPING}, "exits or length_adaptive, not both"),
            ("dense:x", {"length_adaptive": {**DROPPING, "layers": [2, 2]}}, "layers must be distinct layers"),
            ("dense:x", {"length_adaptive": {**DROPPING, "layers": [0]}}, "layers must be distinct layers"),
            ("dense:x", {"length_adaptive": {**DROPPING, "keep": [0.5, 1]}}, "keep must be distinct shares between 0"),
            ("dense:x", {"length_adaptive": {**DROPPING, "keep": 0}}, "keep must be distinct shares between 0 and 1"),
            ("sparse:x", {"length_adaptive": DROPPING}, "length_adaptive is for dense students; this one is sparse"),
            ("dense:x", {"stage": {"exit_kl": 1}}, "need a student with exits"),
            ("dense:x", {"stage": {"exit_weights": {1: 2}}}, "need a student with exits"),
            ("dense:x", {"head": "vdr"}, "head is for .* students; this one is dense"),
            ("sparse:x", {"head": "vdr", "queries": "inference-free"}, "leave queries out"),
            ("sparse:x", {"stage": {"own_tokens": 1}}, "own_tokens is for head: vdr"),
            ("sparse:x", {"stage": {"matryoshka": [8]}}, "matryoshka .* sparse"),
            ("multi-vector:x", {"stage": {"matryoshka": [8]}}, "matryoshka .* multi-vector"),
            ("cross-encoder:x", {"stage": {"matryoshka": [8]}}, "matryoshka .* cross-encoder"),
        ],
    )
    def test_options_of_another_kind_or_without_their_counterpart(self, model, given, message):
        if message is None:
            assert student(model, **given).clusters.sizes == (0.08, 0.08)
            return
        with pytest.raises(pydantic.ValidationError, match=message):
            student(model, **given)

    def test_a_hybrid_has_neither_exits_nor_leading_dimensions(self):
        with pytest.raises(pydantic.ValidationError, match=r"matryoshka .* hybrid"):
            student("dense:x", "lexical", lexical_dim=64, stage={"matryoshka": [8]})
        with pytest.raises(pydantic.ValidationError, match=r"exits is for dense students; .* hybrid"):
            student("dense:x", "lexical", lexical_dim=64, exits=[2])

    def test_truncations_without_a_vector_to_cut(self):
        sparse = {"s": {"model": "sparse:x", "stages": [{"objectives": "kl", "train": "both_encoders"}]}}
        with pytest.raises(UserError, match=r"truncations needs a dense or static student"):
            recipe(sparse, truncations=[64])
        with pytest.raises(UserError, match=r"truncations must be distinct numbers of dimensions, from 1"):
            recipe(truncations=[64, 64])

    def test_dimensions_that_the_space_does_not_have(self):
        with pytest.raises(UserError, match=r"^evaluation.truncations: 48 dimensions, but vectors by .* have 32; use"):
            check_truncations(recipe(truncations=[48]), 32)
        with pytest.raises(UserError, match=r"^s: matryoshka: 64 dimensions, but vectors by .* have 32"):
            check_truncations(recipe(), 32)
        check_truncations(recipe(truncations=[48]), 64)


class TestBesideAClusteredStudent:
    def test_there_are_an_unclustered_and_a_pooled_one_with_these_names(self):
        one, other = student("multi-vector:x", clusters="C8x32"), student("multi-vector:x", clusters="C4x8")
        assert comparison_names({"a": one, "b": student("dense:x")}) == {"a": ("unclustered", "pooled")}
        assert comparison_names({"a": one, "b": other})["b"] == ("b-unclustered", "b-pooled")

    def test_no_student_may_have_their_names(self):
        made = student("multi-vector:x", clusters="C8x32").model_dump()
        with pytest.raises(UserError, match=r"a student cannot be called 'pooled', the name of another system"):
            recipe({"student": made, "pooled": student("dense:x").model_dump()})

    def test_the_unclustered_one_differs_in_nothing_else(self):
        made = student("multi-vector:x", clusters="C8x32", control=None)
        assert without_clusters(made) == student("multi-vector:x", control=None)

    def test_sizes_by_name_or_one_by_one(self):
        assert student("multi-vector:x", clusters="C8x32").clusters.sizes == (8, 32)
        one_side = student("multi-vector:x", clusters={"document": 32, "method": "ward"}).clusters
        assert (one_side.sizes, one_side.options) == ((None, 32), {"weighted": False, "method": "ward"})
