"""Which documents pseudo-queries are trained on, by their kind."""

import json

import numpy as np
import pytest

from retrodistill.data.pseudo_queries import is_phrase
from retrodistill.rankers import load_ranker
from retrodistill.training.scoring import candidate_pairs, scored_lists, stage_texts
from retrodistill.training.settings import StageSettings
from retrodistill.training.training_data import TrainingData


@pytest.fixture
def data(tiny, tmp_path):
    return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), None, tmp_path)


@pytest.fixture
def stage(tiny, tmp_path):
    """Stages that train on a title, a generated query, and two phrases of each document."""
    rows = (
        {"_id": id_, "text": f"what about {title}", "document_id": id_} for id_, title in list(tiny.titles.items())[:30]
    )
    path = tmp_path / "generated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {"sentences": 0, "phrases": 2, "generated": str(path)}

    def stage(objective, **candidates):
        listed = {"sources": ["bm25"], "depth": 60, **candidates}
        return StageSettings.model_validate({"objectives": objective, "texts": texts, "candidates": listed})

    return stage


def shows_source(lists, sources):
    """(texts,) bool, whether the source of each pseudo-query counts in its list."""
    return ((lists.documents == sources[:, None]) & lists.mask).any(axis=1)


class TestSources:
    def test_those_of_phrases_alone_are_candidates(self, data, stage):
        texts = stage_texts(stage("kl"), data)
        lists = scored_lists(stage("kl"), data, texts).lists
        phrases, pseudo = is_phrase(texts.texts), texts.sources >= 0
        assert shows_source(lists, texts.sources)[phrases].all()
        assert not shows_source(lists, texts.sources)[pseudo & ~phrases].any()
        assert (lists.positives[phrases] == -1).all()

    def test_all_are_positives_where_a_stage_needs_positives(self, data, stage):
        texts = stage_texts(stage("contrastive"), data)
        lists = scored_lists(stage("contrastive"), data, texts).lists
        pseudo = texts.sources >= 0
        assert lists.shows_positives[pseudo].all()
        np.testing.assert_array_equal(lists.positives, texts.sources)
        assert shows_source(lists, texts.sources)[pseudo].all()

    def test_a_budget_buys_those_of_phrases_alone(self, data, stage):
        given = stage("kl", budget="100%")
        texts = stage_texts(given, data)
        pairs = candidate_pairs(given, data, texts.texts).run.to_dict()
        names, bought = data.collection.documents.ids, []
        for id_, source in zip(texts.texts.ids, texts.sources.tolist(), strict=True):
            bought.append(source >= 0 and names[source] in pairs[id_])
        np.testing.assert_array_equal(bought, is_phrase(texts.texts))
