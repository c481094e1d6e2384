import json
import math

import pytest
from sample_results import results, system, whole

from retrodistill.core.errors import UserError
from retrodistill.evaluation.results import Results


def content(**changed):
    return {**results().to_json(), **changed}


class TestRoundTrip:
    def test_the_same_results_come_back_from_a_file(self):
        for one in (results(), whole()):
            assert Results.from_json(json.loads(json.dumps(one.to_json()))) == one

    def test_what_an_earlier_version_wrote_is_read(self):
        old = content()
        for key in ("kept_of", "sides", "won", "lost"):
            del old[key]
        for one in old["examples"]:
            for key in ("query_id", "teacher_value", "student_value"):
                del one[key]
        assert Results.from_json(old) == results()

    def test_the_keys_are_the_measures_names(self):
        first = results().to_json()["systems"][0]
        assert {"ndcg@10", "mrr@10", "recall@100", "retention", "bytes_per_document", "query_ms"} <= first.keys()

    def test_what_was_not_measured_stays_so(self):
        bare = system("bm25", "baseline", query_ms=None, bytes_per_document=None)
        again = Results.from_json(results(systems=[bare], taught_by=None, comparisons=[]).to_json())
        assert again.systems[0].query_ms is None
        assert again.systems[0].bytes_per_document is None

    def test_a_whole_number_is_a_measure_too(self):
        changed = content()
        changed["systems"][0]["ndcg@10"] = 1
        assert Results.from_json(changed).systems[0].ndcg10 == 1.0


class TestBadInputIsRefused:
    def refused(self, changed, words):
        with pytest.raises(UserError, match=words):
            Results.from_json(changed)

    def test_not_an_object(self):
        self.refused([1], "one object, not list")

    def test_a_missing_key_is_named(self):
        changed = content()
        del changed["systems"][1]["ndcg@10"]
        self.refused(changed, r"lacks systems\.1\.ndcg@10")

    def test_an_unknown_key_gets_the_nearest_known_one(self):
        changed = content()
        changed["systems"][0]["ndcg@100"] = 0.5
        self.refused(changed, "Did you mean 'ndcg@10'")

    def test_an_unknown_key_at_the_top(self):
        self.refused(content(colection="x"), "Did you mean 'collection'")

    def test_a_measure_above_one(self):
        changed = content()
        changed["systems"][0]["mrr@10"] = 64.5
        self.refused(changed, r"systems\.0\.mrr@10: .*less than or equal to 1, not 64\.5")

    def test_nan(self):
        changed = content()
        changed["systems"][0]["ndcg@10"] = math.nan
        self.refused(changed, "finite")

    def test_a_number_in_quotes(self):
        changed = content()
        changed["systems"][0]["ndcg@10"] = "0.5"
        self.refused(changed, "valid number")

    def test_latency_without_p95(self):
        changed = content()
        changed["systems"][0]["query_ms"] = {"p50": 1.0}
        self.refused(changed, "p50 and p95")

    def test_a_role_outside_the_list(self):
        changed = content()
        changed["systems"][0]["role"] = "pupil"
        self.refused(changed, "'baseline', 'teacher', 'control' or 'student'")

    def test_two_systems_of_one_name(self):
        self.refused(content(systems=[content()["systems"][0]] * 2), "two systems are named 'bm25'")

    def test_no_system(self):
        self.refused(content(systems=[]), "systems: ")

    def test_a_teacher_that_was_not_measured(self):
        self.refused(content(taught_by="ensembel"), "Did you mean 'ensemble'")

    def test_a_reference_that_was_not_measured(self):
        self.refused(content(kept_of="exakt"), "kept_of: unknown system 'exakt'")
        self.refused(content(sides=["student"]), "sides names 1 systems")
        self.refused(content(sides=["student", "studnt"]), "Did you mean 'student'")

    def test_an_unknown_key_of_a_query_that_was_won(self):
        won = {**content()["examples"][0], "valu": 1.0}
        self.refused(content(won=[won]), r"won\.0: unknown key .valu.")

    def test_an_unknown_key_of_a_document_that_was_missed(self):
        missed = {"document_id": "d", "text": "star", "titel": "moon"}
        example = {**content()["examples"][0], "missed": [missed]}
        self.refused(content(examples=[example]), "Did you mean 'title'")

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"p_holm": 1.5}, "p_holm is 1.5, not between 0 and 1"),
            ({"p": None}, "p is None"),
            ({"p": 1.2}, "not between 0 and 1"),
            ({"interval": [0.1]}, "two numbers"),
            ({"interval": [0.2, 0.1]}, "upside down"),
            ({"difference": math.nan}, "difference is nan"),
            ({"a": "nobody"}, "unknown system 'nobody'"),
        ],
    )
    def test_a_broken_comparison(self, changed, words):
        self.refused(content(comparisons=[{**content()["comparisons"][0], **changed}]), words)

    def test_a_comparison_that_lacks_a_key(self):
        self.refused(content(comparisons=[{"a": "student", "b": "bm25"}]), "lacks measure, difference, interval, p")

    @pytest.mark.parametrize(
        ("curve", "words"),
        [
            ({"losses": [{"loss": 1.0}]}, "lacks its step"),
            ({"loss": []}, "Did you mean 'losses'"),
            ({"losses": [{"step": 1, "loss": math.inf}]}, "loss is inf"),
        ],
    )
    def test_a_broken_curve(self, curve, words):
        self.refused(content(curves={"student": curve}), words)
