from sample_results import results, system

from retrodistill.reports import answer


def with_student(**changed):
    return results(systems=[*results().systems[:4], system(**changed)])


class TestTheAnswer:
    def test_says_what_was_kept_of_whom(self):
        assert "distilled from ensemble, keeps 94.1% of its nDCG@10: 0.690 against 0.733" in answer(results())[0]

    def test_says_what_it_costs(self):
        assert answer(results())[1] == (
            "student answers a query in 0.12 ms (median) and stores 1,536 bytes a document; ensemble takes 19.6 ms."
        )

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
        assert "small has nDCG@10 0.600, 81.9% kept" in told[-1]

    def test_no_student(self):
        one = results(systems=[system("bm25", "baseline")], taught_by=None, comparisons=[])
        assert answer(one) == [
            "1 system was measured on scifact (test, 300 queries): bm25 has the highest nDCG@10, 0.690."
        ]

    def test_no_judgements(self):
        blind = [system(one.name, one.role, ndcg10=None, retention=None) for one in results().systems]
        assert "no judgements" in answer(results(systems=blind))[0]

    def test_no_cost(self):
        told = answer(with_student(query_ms=None, bytes_per_document=None))
        assert told[1] == "What student costs was not measured."
