import re

from sample_results import results, system, unjudged, whole

from retrodistill.report import answer, page_text
from retrodistill.report.headline import comparison_of


def with_student(**changed):
    return results(systems=[*results().systems[:4], system(**changed)])


class TestTheAnswer:
    def test_says_what_was_kept_of_whom(self):
        assert "distilled from ensemble, keeps 94.1% of its nDCG@10: 0.690 against 0.733" in answer(results())[0]

    def test_says_what_it_costs(self):
        own, other = answer(results())[1].split(";")
        assert own.startswith("student answers a query in 0.12 ms (median) and stores 1,536 bytes")
        assert other == " ensemble takes 19.6 ms and stores 2,310 bytes."

    def test_a_student_below_its_control_is_said_at_once(self):
        sentence = answer(with_student(ndcg10=0.29, retention=0.396))[1]
        assert "0.010 nDCG@10 below the control" in sentence
        assert "the distillation did not help" in sentence

    def test_a_student_below_its_teacher_is_said_with_its_significance(self):
        told = " ".join(answer(results()))
        assert "0.043 nDCG@10 below its teacher ensemble (significant: interval −0.066 to −0.021, p < 0.001)" in told

    def test_a_difference_that_was_not_tested_is_said_so(self):
        assert "above the control (significance not tested)" in " ".join(answer(results()))

    def test_chance_is_called_not_significant(self):
        chance = {**results().comparisons[0], "b": "bm25", "difference": 0.004, "interval": [-0.02, 0.03], "p": 0.7}
        assert "above the baseline bm25 (not significant:" in " ".join(answer(results(comparisons=[chance])))

    def test_a_comparison_the_other_way_round_is_turned(self):
        turned = {**results().comparisons[0], "a": "ensemble", "b": "student", "difference": 0.043}
        turned["interval"] = [0.021, 0.066]
        assert "significant: interval −0.066 to −0.021" in " ".join(answer(results(comparisons=[turned])))

    def test_a_student_above_its_teacher(self):
        told = " ".join(answer(with_student(ndcg10=0.75, retention=1.023)))
        assert "keeps 102.3%" in told
        assert "0.017 nDCG@10 above its teacher" in told

    def test_the_best_of_two_students_is_the_answer(self):
        told = answer(results(systems=[*results().systems, system("small", ndcg10=0.6, retention=0.819)]))
        assert told[0].startswith("On scifact (test), student,")
        assert "small has nDCG@10 0.600, 81.9% kept" in told[-2]
        assert re.search("student was .* best of 2 students on these same test queries.* optimistic", told[-1])

    def test_one_student_was_not_picked(self):
        assert not any("optimistic" in sentence for sentence in answer(results()))
        assert not any("optimistic" in sentence for sentence in answer(unjudged()))

    def test_many_other_students_take_one_sentence(self):
        more = [system(f"s{at}", ndcg10=0.5 + at / 100, retention=0.8) for at in range(4)]
        told = answer(results(systems=[*results().systems, *more]))
        assert told[-2] == "The 4 other students have nDCG@10 from 0.500 to 0.530; student is the best one."
        assert sum("other students" in sentence for sentence in told) == 1

    def test_no_student(self):
        one = results(systems=[system("bm25", "baseline")], taught_by=None, comparisons=[])
        assert answer(one) == [
            "1 system was measured on scifact (test, 300 queries): bm25 has the highest nDCG@10, 0.690."
        ]

    def test_without_a_student_the_best_is_held_against_what_it_was_tested_with(self):
        rows = [system("bm25", "baseline", ndcg10=0.6), system("other", "baseline", ndcg10=0.64)]
        tested = {**results().comparisons[0], "a": "other", "b": "bm25", "difference": 0.04, "interval": [0.02, 0.06]}
        assert answer(results(systems=rows, taught_by=None, comparisons=[tested]))[1:] == [
            "other is 0.040 nDCG@10 above the baseline bm25 (significant: interval +0.020 to +0.060, p < 0.001)."
        ]

    def test_no_judgments_leave_agreement_and_cost(self):
        told = answer(unjudged())
        assert "no relevance judgments" in told[0]
        assert told[1] == "student finds 71% of the ten best documents of ensemble among its own ten."
        assert told[2].startswith("student answers a query in")
        assert len(told) == 3

    def test_agreement_follows_quality_and_cost(self):
        assert "student finds 71%" in answer(whole())[2]

    def test_a_corrected_p_decides(self):
        chance = {**results().comparisons[0], "p": 0.03, "p_holm": 0.09, "smallest": 0.031}
        told = " ".join(answer(results(comparisons=[chance])))
        assert "(not significant: interval −0.066 to −0.021, corrected p = 0.090; " in told
        assert "detectable difference is 0.031)" in told

    def test_what_is_kept_may_be_of_another_than_the_teacher(self):
        exact = system("exact", "teacher", ndcg10=0.70, query_ms={"p50": 8.0, "p95": 9.0}, bytes_per_document=1536.0)
        told = answer(results(systems=[*results().systems, exact], kept_of="exact"))
        assert "distilled from ensemble, keeps 94.1% of exact’s nDCG@10: 0.690 against 0.700" in told[0]
        assert told[1].endswith("; exact takes 8.0 ms.")
        assert any("below exact (significance" in sentence for sentence in told)

    def test_a_comparison_turned_round_turns_its_outcomes(self):
        turned = {**whole().comparisons[0], "a": "ensemble", "b": "student", "difference": 0.043}
        turned["interval"] = [0.021, 0.066]
        found = comparison_of(results(comparisons=[turned]), "student", "ensemble")
        assert (found["wins"], found["ties"], found["losses"]) == (60, 200, 40)

    def test_no_cost(self):
        told = answer(with_student(query_ms=None, bytes_per_document=None))
        assert told[1] == "The cost of student was not measured."

    def test_warnings_follow_the_answer_and_are_not_repeated_among_the_notes(self):
        warned = results(notes=["warning: student may be no better than BM25.", "Two queries were dropped."])
        assert warned.warnings == warned.notes[:1]
        assert answer(warned)[2] == "Warning: student may be no better than BM25."
        assert page_text(warned).count("may be no better") == 1
        alone = page_text(results(notes=warned.notes[:1]))
        assert alone.count("may be no better") == 1
        assert 'id="notes"' not in alone
