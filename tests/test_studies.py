"""The studies under evaluation/: every job is a recipe that loads, and tables come out of what jobs leave behind."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrodistill.core.manifest import Manifest
from retrodistill.data.beir import PUBLIC
from retrodistill.recipes import load_recipe

HERE = Path(__file__).parents[1] / "evaluation" / "studies"
sys.path.insert(0, str(HERE))

import run as runner  # noqa: E402
from study import OTHER_SOURCES, Job, Study, expanded, load_study, studies  # noqa: E402
from tables import write_results  # noqa: E402


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    recipe, *overrides = arguments
    return recipe, overrides


class TestTheStudiesWeShip:
    @pytest.mark.parametrize("name", studies())
    def test_every_job_is_a_recipe_that_loads(self, name: str) -> None:
        study = load_study(name)
        for job in study.jobs:
            for large in (False, True):
                recipe, *overrides = job.arguments(study, "no such folder", large)
                source = load_recipe(recipe, overrides).collection
                assert source == (OTHER_SOURCES.get(job.collection, f"beir/{job.collection}") or job.collection)
                assert job.collection in (*PUBLIC, *OTHER_SOURCES)

    @pytest.mark.parametrize("name", studies())
    def test_larger_settings_are_larger(self, name: str) -> None:
        study = load_study(name)
        for job in study.jobs:
            small, large = (
                [
                    (
                        stage.training.max_steps or math.inf,
                        stage.training.epochs,
                        stage.training.batch_size,
                        math.inf if stage.candidates.depth == "all" else stage.candidates.depth,
                        stage.candidates.random,
                        stage.groups.documents,
                        stage.groups.depth,
                        stage.texts.sentences,
                    )
                    for student in recipe.students.values()
                    for stage in student.stages
                ]
                or [(recipe.index.learn.steps, recipe.index.learn.batch_size)]
                for recipe in (load_recipe(*_split(job.arguments(study, "none", large))) for large in (False, True))
            )
            assert len(small) == len(large)
            for before, after in zip(small, large, strict=True):
                assert all(a <= b for a, b in zip(before, after, strict=True)), (job, before, after)
                assert before != after

    def test_the_list_of_studies_has_each(self) -> None:
        listed = (HERE / "README.md").read_text()
        assert [name for name in studies() if f"]({name}/README.md)" not in listed] == []

    @pytest.mark.parametrize("name", studies())
    def test_every_study_has_a_page_of_findings(self, name: str) -> None:
        page = (HERE / name / "README.md").read_text()
        assert "## Published" in page
        assert "## Findings" in page

    @pytest.mark.parametrize(
        ("config", "recipe", "student"),
        [
            ("labeling-budget", "budget/recipe", "random-25"),
            ("prod", "prod/recipe", "prod"),
            ("colbert-crisp", "crisp/recipe", "C8x32"),
            ("colbert-small", "token-vectors/dimensions", "dims-48"),
            ("tas-b", "tas-b/recipe", "tas-b"),
        ],
    )
    def test_a_recipe_whose_figure_is_a_studys_has_its_settings(self, config: str, recipe: str, student: str) -> None:
        ours = load_recipe(HERE.parents[1] / "configs" / f"{config}.yaml")
        theirs = load_recipe(HERE / f"{recipe}.yaml")
        assert (ours.document_encoder, ours.teacher) == (theirs.document_encoder, theirs.teacher)
        mine, measured = (
            # of the best 100 candidates, which groups are drawn from, depth 200 has 99.7% (corpus-sample/coverage.py)
            one.model_dump(exclude={"control": True, "stages": {"__all__": {"candidates": {"depth"}}}})
            for one in (ours.students["student"], theirs.students[student])
        )
        assert mine == measured

    def test_a_job_is_called_by_its_name_its_collection_or_both(self) -> None:
        job = Job("asymmetric", "scifact", "recipe.yaml")
        assert all(job.is_called(words) for words in ("asymmetric", "scifact", "asymmetric-scifact"))
        assert not any(job.is_called(words) for words in ("symmetric", "metric-sci", "nfcorpus"))


class TestTables:
    @pytest.fixture
    def done(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Path]:
        """A study of two jobs, one of which is done."""
        monkeypatch.setattr("study.HERE", tmp_path / "studies")
        jobs = [Job("small", name, "recipe.yaml", against=["control"]) for name in ("scifact", "nfcorpus")]
        study = Study("claim", "A claim", jobs)
        study.folder.mkdir(parents=True)
        place = tmp_path / "out" / "small-scifact"
        place.mkdir(parents=True)
        systems = [
            {"name": name, "role": role, "ndcg@10": value, "recall@100": 0.5, "bytes_per_document": 1536.0}
            for name, role, value in (("control", "control", 0.2), ("student", "student", 0.7))
        ]
        results = {"systems": systems, "queries": 20, "seconds": {"train student": 12.4}}
        (place / "results.json").write_text(json.dumps(results))
        ids = [str(query) for query in range(20)]
        rows = {"system": ["control"] * 20 + ["student"] * 20, "query_id": ids * 2, "ndcg@10": [0.2] * 20 + [0.7] * 20}
        pq.write_table(pa.table(rows), place / "per-query.parquet")
        return study, tmp_path / "out"

    def test_rows_tell_quality_difference_and_cost(self, done: tuple[Study, Path]) -> None:
        study, out = done
        assert write_results(study, out)
        control, student = json.loads((study.folder / "results.json").read_text())
        assert (student["difference"], student["against"], student["train_seconds"]) == (0.5, "control", 12.4)
        assert student["p_holm"] < 0.001
        assert control["difference"] is None
        assert len(pq.read_table(study.folder / "per-query.parquet")) == 40

    def test_the_words_of_a_page_stay_where_its_tables_are_written_anew(self, done: tuple[Study, Path]) -> None:
        study, out = done
        page = study.folder / "README.md"
        page.write_text("# A claim\n\nBefore.\n\n<!-- results -->\nold\n<!-- /results -->\n\nAfter.\n")
        write_results(study, out)
        first = page.read_text()
        write_results(study, out)
        assert page.read_text() == first
        assert "old" not in first
        assert first.index("Before.") < first.index("| student | 0.7000 |") < first.index("After.")

    def test_what_another_machine_measured_stays(self, done: tuple[Study, Path]) -> None:
        study, out = done
        write_results(study, out)
        before = json.loads((study.folder / "results.json").read_text())
        (out / "small-scifact").rename(out / "small-nfcorpus")  # only that collection is measured here
        (out / "small-nfcorpus" / "seconds.txt").write_text("90.0\n")
        assert write_results(study, out)
        rows = json.loads((study.folder / "results.json").read_text())
        assert rows[:2] == before
        assert [(row["collection"], row["job_seconds"]) for row in rows[2:]] == [("nfcorpus", 90)] * 2
        page = (study.folder / "README.md").read_text()
        assert page.index("small, scifact") < page.index("**small, nfcorpus** (20 test queries; 2 min on one core")
        assert len(pq.read_table(study.folder / "per-query.parquet")) == 80

    def test_a_job_that_is_no_more_leaves_the_tables(self, done: tuple[Study, Path]) -> None:
        study, out = done
        write_results(study, out)
        (out / "small-scifact").rename(out / "other-scifact")
        other = Study("claim", "A claim", [Job("other", "scifact", "recipe.yaml")])
        write_results(other, out)
        assert {row["job"] for row in json.loads((study.folder / "results.json").read_text())} == {"other"}

    def test_seeds_are_compared_by_the_mean_of_each_query(self, done: tuple[Study, Path]) -> None:
        study, out = done
        jobs = [Job(f"small-{seed}", "scifact", "recipe.yaml", against=["control"]) for seed in range(2)]
        for job, lift in zip(jobs, (0.1, -0.1), strict=True):
            shutil.copytree(out / "small-scifact", out / job.folder)
            values = pq.read_table(out / job.folder / "per-query.parquet").to_pydict()
            values["ndcg@10"] = [value + lift * (row % 2 * 2 - 1) for row, value in enumerate(values["ndcg@10"])]
            pq.write_table(pa.table(values), out / job.folder / "per-query.parquet")
        write_results(replace(study, jobs=jobs, seeds=["small"]), out)
        page = (study.folder / "README.md").read_text()
        assert "`student` minus `control` on scifact, mean of 2 seeds of `small`: +0.5000 [+0.5000, +0.5000]" in page
        assert "| small, mean nDCG@10 of 2 seeds | scifact |" in page

    def test_larger_settings_stand_apart(self, done: tuple[Study, Path]) -> None:
        study, out = done
        page = study.folder / "README.md"
        page.write_text("# A claim\n\n<!-- results -->\n<!-- /results -->\n\n## Findings\n\nThat it holds.\n")
        write_results(study, out)
        small = {path.name: path.read_bytes() for path in study.folder.iterdir()}
        results = json.loads((out / "small-scifact" / "results.json").read_text())
        results["hardware"] = {"gpu": "NVIDIA H200"}
        (out / "small-scifact" / "results.json").write_text(json.dumps(results))
        (out / "small-scifact" / "seconds.txt").write_text("300.0\n")
        for _ in range(2):
            assert write_results(study, out, large=True)
        assert all((study.folder / name).read_bytes() == small[name] for name in ("results.json", "per-query.parquet"))
        text = page.read_text()
        title = "**small, scifact, larger settings** (20 test queries; 5 min on one NVIDIA H200; "
        assert text.count("| student | 0.7000 |") == 2
        assert text.index("**small, scifact** (20") < text.index(title) < text.index("## Findings")
        assert len(json.loads((study.folder / "results-large.json").read_text())) == 2

    def test_a_study_without_results_writes_nothing(self, done: tuple[Study, Path], tmp_path: Path) -> None:
        study, _ = done
        assert not write_results(study, tmp_path / "nothing")
        assert not (study.folder / "results.json").exists()


class TestLargerSettings:
    def test_a_star_stands_for_every_student_and_stage(self) -> None:
        recipe = {"students": {"a": {"stages": [{"x": 1}, {}]}, "b": {"stages": [{}]}}}
        assert expanded("students.*.stages.*.training.epochs=4", recipe) == [
            "students.a.stages.0.training.epochs=4",
            "students.a.stages.1.training.epochs=4",
            "students.b.stages.0.training.epochs=4",
        ]
        assert expanded("students.*.stages.1.x=2", recipe) == ["students.a.stages.1.x=2"]  # b has one stage only
        assert expanded("seed=3", recipe) == ["seed=3"]


class TestRunner:
    @pytest.fixture
    def ran(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Commands of jobs in the place of running them; each succeeds and leaves results, but for one called bad."""
        commands: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
            commands.append(command)
            time.sleep(0.02)
            folder = Path(command[-1])
            if folder.name.startswith("bad"):
                return subprocess.CompletedProcess(command, 2)
            (folder / "results.json").write_text("{}")
            recipe, *overrides = command[4:-2]
            Manifest("job", {}, load_recipe(recipe, overrides).model_dump(mode="json")).write(folder)
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(runner.subprocess, "run", run)
        return commands

    def outcomes(self, tmp_path: Path, jobs: list[Job], hours: float = math.inf, lanes: int = 2) -> dict[str, str]:
        settings = argparse.Namespace(jobs=lanes, data="none", large=False, hours=hours)
        study = Study("budget", "A claim", jobs)
        return {one.name: one.state for one in runner.run_jobs([(study, job) for job in jobs], settings, tmp_path)}

    def test_a_job_that_fails_stops_no_other_and_each_leaves_its_time(self, tmp_path: Path, ran: list) -> None:
        jobs = [Job(name, "scifact", "recipe.yaml") for name in ("bad", "good")]
        told = self.outcomes(tmp_path, jobs)
        assert told == {"budget/bad-scifact": "failed", "budget/good-scifact": "done"}
        assert all(job.seconds(tmp_path / "budget") > 0 for job in jobs)

    def test_what_does_not_fit_into_the_hours_is_left_for_the_same_command(self, tmp_path: Path, ran: list) -> None:
        jobs = [Job("long", "scifact", "recipe.yaml", minutes=50), Job("short", "scifact", "recipe.yaml", minutes=10)]
        told = self.outcomes(tmp_path, jobs, hours=0.5)
        assert told == {"budget/long-scifact": "left", "budget/short-scifact": "done"}
        assert [Path(command[-1]).name for command in ran] == ["short-scifact"]
        assert self.outcomes(tmp_path, jobs, hours=1) == dict.fromkeys(told, "done")
        spent = jobs[1].seconds(tmp_path / "budget")
        assert self.outcomes(tmp_path, jobs, hours=0.01) == dict.fromkeys(told, "done")  # all done, whatever the time
        assert len(ran) == 2
        assert jobs[1].seconds(tmp_path / "budget") == spent

    def test_the_longest_begins_first_and_what_is_marked_as_last_after_all_others(
        self, tmp_path: Path, ran: list
    ) -> None:
        todo = [Job("table", "scifact", "recipe.yaml", minutes=50, last=True)]
        todo += [Job(name, "scifact", "recipe.yaml", minutes=minutes) for name, minutes in (("b", 1), ("a", 9))]
        self.outcomes(tmp_path, todo, lanes=1)
        assert [Path(command[-1]).name for command in ran] == ["a-scifact", "b-scifact", "table-scifact"]

    def test_one_whose_settings_changed_is_run_again(self, tmp_path: Path, ran: list) -> None:
        self.outcomes(tmp_path, [Job("one", "scifact", "recipe.yaml")])
        self.outcomes(tmp_path, [Job("one", "scifact", "recipe.yaml", set=["seed=1"])])
        assert [command[-3] for command in ran] == ["collection=beir/scifact", "seed=1"]
