"""A collection without queries: texts of its documents are trained and tested on."""

import json
import shutil

import pytest

from retrodistill.core.errors import UserError
from retrodistill.data.pseudo_queries import source_document
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes.job import open_job
from retrodistill.training.texts import training_texts


@pytest.fixture
def alone(content, tiny_folder, tmp_path):
    """The small recipe on a folder that holds documents and nothing else."""
    (tmp_path / "alone").mkdir()
    shutil.copy(tiny_folder / "corpus.jsonl", tmp_path / "alone")
    content["collection"] = str(tmp_path / "alone")
    content["students"]["student"] |= {"stages": content["students"]["student"]["stages"][:1], "control": None}
    del content["teacher"]
    return content


def test_a_fifth_of_the_documents_gives_a_test_query_each(alone, tmp_path):
    job = open_job(parse_recipe(alone), tmp_path / "out")
    assert (len(job.test), len(job.train)) == (12, 0)
    assert len({source_document(query) for query in job.test.ids}) == 12
    assert any("no queries" in note for note in job.notes)


def test_no_test_query_is_trained_on(alone, tmp_path):
    job = open_job(parse_recipe(alone), tmp_path / "out")
    texts = training_texts(job.collection, job.train, sentences=9, excluded=job.training_data.excluded)
    assert len(texts) > 100
    assert texts.left_out >= 12
    assert not set(texts.texts.texts) & set(job.test.texts)


def test_it_runs(alone, tmp_path):
    run_recipe(parse_recipe(alone), tmp_path / "out")
    systems = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["systems"]
    assert {"student", "teacher"} <= {system["name"] for system in systems}


def test_documents_without_sentences_give_their_words(alone, tmp_path):
    lines = [json.dumps({"_id": str(number), "text": f"word{number}"}) for number in range(10)]
    (tmp_path / "alone" / "corpus.jsonl").write_text("\n".join(lines))
    assert len(open_job(parse_recipe(alone), tmp_path / "out").test) == 2


def test_a_split_that_is_asked_for_is_missed(alone, tmp_path):
    alone["split"] = {"train": "train"}
    with pytest.raises(UserError, match="'train'"):
        open_job(parse_recipe(alone), tmp_path / "out")


def test_conversations_cannot_be_made_of_nothing(alone, tmp_path):
    alone["conversations"] = "made"
    with pytest.raises(UserError, match="JSONL of turns"):
        open_job(parse_recipe(alone), tmp_path / "out")
