"""Hostile input of every kind ends in one line with exit status 2, or in a correct result.

The long part takes the cases that the seed FAULTS_SEED, 0 by default, draws from each family; FAULTS_CASES is their
number in each: empty for that of the family, a large one for all of them.
"""

import shutil

import pytest
from hostile_artifacts import write_runs
from hostile_cases import FAMILIES
from hostile_runner import BYTES, SECONDS, Case, Ended, problem_of, run_cases
from long import CASES, SEED, record

pytestmark = pytest.mark.xdist_group("children")


def wrong(artifacts, folder, family, most, **options):
    problems = run_cases("hostile_cases", [str(artifacts), family, most, str(SEED)], folder, **options)
    assert problems
    record("hostile cases", len(problems))
    return "\n".join(f"{name}: {problem}" for name, problem in problems.items() if problem)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_case_is_refused_or_right(artifacts, tmp_path, family):
    assert not wrong(artifacts, tmp_path, family, CASES)


@pytest.mark.parametrize("family", ["tables", "recipes"])
def test_some_cases_are_refused_or_right(tiny_folder, tmp_path, family):
    (tmp_path / "artifacts").mkdir()
    shutil.copytree(tiny_folder, tmp_path / "artifacts" / "tiny")
    write_runs(tmp_path / "artifacts", [f"q{number}" for number in range(9)])
    assert not wrong(tmp_path / "artifacts", tmp_path, family, "6", preload=False)


class TestTheJudge:
    """What the runner calls a problem."""

    @pytest.mark.parametrize(
        ("ended", "problem"),
        [
            (Ended(0, 1, 0, "{}", ""), None),
            (Ended(2, 1, 0, "", "error: no file x.\n"), None),
            (Ended(2, 1, 0, "", "Usage: x\nError: no such option.\n"), None),
            (Ended(2, 1, 0, "", "nothing to see\n"), "no line"),
            (Ended(2, 1, 0, "", ""), "no line"),
            (Ended(2, 1, 0, "", f"error: {'x' * 9999}\n"), "characters"),
            (Ended(2, 1, 0, "", "Traceback\nerror: x\n"), "traceback"),
            (Ended(1, 1, 0, "", "Aborted!\n"), "status 1"),
            (Ended(70, 1, 0, "", "KeyError: 'x'\n"), "KeyError"),
            (Ended(-11, 1, 0, "", ""), "SIGSEGV"),
            (Ended(-9, SECONDS + 1, 0, "", ""), "took 61 s"),
            (Ended(0, 1, BYTES + 1, "", ""), "MiB"),
        ],
    )
    def test_ends_that_are_no_line_and_no_result(self, ended, problem):
        found = problem_of(Case("x", ()), ended)
        assert found is None if problem is None else problem in found

    @pytest.mark.parametrize(
        ("case", "problem"),
        [
            (Case("x", (), expect="refused"), "was accepted"),
            (Case("x", (), holds=lambda out: "ndcg" in out), "a wrong result"),
        ],
    )
    def test_results_that_should_not_be(self, case, problem):
        assert problem in problem_of(case, Ended(0, 1, 0, "{}", ""))

    def test_refusals_that_should_not_be(self):
        assert "was refused" in problem_of(Case("x", (), expect="accepted"), Ended(2, 1, 0, "", "error: x\n"))


@pytest.mark.parametrize(
    ("work", "problem"),
    [
        ("lambda folder: bytearray(3 << 30)", "MemoryError"),
        ("lambda folder: os.abort()", "SIGABRT"),
        ("lambda folder: [][0]", "IndexError"),
        ("lambda folder: 'fine'", None),
    ],
    ids=["memory", "abort", "traceback", "fine"],
)
def test_a_case_cannot_take_the_others_with_it(tmp_path, work, problem):
    module = f"import os\nfrom hostile_runner import Case\ndef cases(): return [Case('x', {work})]"
    (tmp_path / "one_case.py").write_text(module)
    found = run_cases("one_case", [], tmp_path, preload=False)["x"]
    assert found is None if problem is None else problem in found
