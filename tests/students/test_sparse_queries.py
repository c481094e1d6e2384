"""Query encoders of sparse students: a copy of the documents' encoder, trained against documents that stay fixed."""

import numpy as np
import pydantic
import pytest
import torch
from scipy.sparse import csr_array

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.settings import Recipe
from retrodistill.recipes.student_settings import StudentSettings, complete_student
from retrodistill.students import dense
from retrodistill.students.lexical_terms import LexicalTerms
from retrodistill.students.registry import run_stage
from retrodistill.students.sparse import sparse_student
from retrodistill.students.sparse_queries import StoredTermsScorer, with_query_encoder
from retrodistill.training.lists import ListBatch
from retrodistill.training.settings import RegularizerSettings
from retrodistill.training.trainer import History
from retrodistill.training.training_data import TrainingData

STAGE = {
    "objectives": "kl",
    "train": "query_encoder",
    "texts": {"titles": True, "sentences": 1},
    "candidates": {"depth": 6, "sources": ["bm25"], "shared": 5},
    "training": {"epochs": 1, "max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0},
}


def settings(**more):
    given = {"model": "sparse:x", "queries": "separate-model", "lexical_terms": True, "stages": [STAGE], **more}
    return StudentSettings.model_validate(given)


@pytest.fixture
def model(tiny, tiny_model):
    return sparse_student(tiny_model, tiny.documents, queries="separate-model", lexical_terms=True)


@pytest.fixture
def data(tiny, tmp_path):
    return TrainingData(tiny, tiny.split("train"), load_ranker("bm25"), None, tmp_path / "out", own_documents=True)


class TestStart:
    def test_documents_are_those_of_an_inference_free_student(self, model, tiny, tiny_model):
        free = sparse_student(tiny_model, tiny.documents, queries="inference-free", lexical_terms=True)
        ours, theirs = (
            SparseTextEncoder(each, "sparse:one").encode(tiny.documents.texts, "document") for each in (model, free)
        )
        assert abs(ours - theirs).max() == 0

    def test_queries_weigh_logits_by_inverse_document_frequency(self, model, tiny, tiny_model):
        free = SparseTextEncoder(
            sparse_student(tiny_model, tiny.documents, queries="inference-free", lexical_terms=True), "sparse:free"
        )
        plain = SparseTextEncoder(sparse_student(tiny_model, tiny.documents, queries="inference-free"), "sparse:plain")
        factors = free.token_weights("query").weights
        texts = ["the bright star", "a judge"]
        # Lexical terms halve the head, which is linear before the ReLU.
        logits = np.expm1(plain.encode(texts, "document").toarray()) / 2 * factors
        found = SparseTextEncoder(model, "sparse:one").encode(texts, "query").toarray()
        np.testing.assert_allclose(found, np.log1p(logits), atol=1e-5)

    def test_a_trained_inference_free_student_keeps_documents_and_gives_its_weights(self, tiny, tiny_model, tmp_path):
        free = sparse_student(tiny_model, tiny.documents, queries="inference-free", lexical_terms=True)
        weights = next(module for module in free.modules() if type(module).__name__ == "SparseStaticEmbedding").weight
        with torch.no_grad():
            weights.mul_(0.5)
        free.save_pretrained(str(tmp_path / "free"), create_model_card=False)
        model = sparse_student(str(tmp_path / "free"), tiny.documents, queries="separate-model")
        ours, theirs = (SparseTextEncoder(each, "sparse:one") for each in (model, free))
        assert abs(ours.encode(["a star"], "document") - theirs.encode(["a star"], "document")).max() == 0
        assert ours.token_weights("query") is None
        again = sparse_student(tiny_model, tiny.documents, queries="separate-model", lexical_terms=True)
        whole = SparseTextEncoder(again, "sparse:one").encode(["a star"], "query")
        half = ours.encode(["a star"], "query")
        np.testing.assert_allclose(np.expm1(half.data), np.expm1(whole.data) / 2, rtol=1e-4)

    def test_weights_below_zero_do_not_turn_missing_terms_into_present_ones(self, tiny, tiny_model):
        encoder = SparseTextEncoder(sparse_student(tiny_model, tiny.documents), "sparse:plain")
        terms = np.unique(encoder.encode(["the bright star"], "query").indices)
        weights = np.full(encoder.dimension, -0.5, dtype=np.float32)
        made = with_query_encoder(encoder.model, encoder.modules("document"), weights)
        found = SparseTextEncoder(made, "sparse:made").encode(["the bright star"], "query")
        assert set(found.indices) == set(terms)
        assert found.data.max() < 0.1

    def test_words_that_no_training_text_had_have_weights_in_queries(self, tiny, tiny_model, data, tmp_path):
        free = sparse_student(tiny_model, tiny.documents, queries="inference-free", lexical_terms=True)
        stage = settings(
            queries="inference-free", stages=[{**STAGE, "train": "head", "texts": {"sentences": 0}}]
        ).stages[0]
        run_stage(free, stage, data, tmp_path / "work", "")
        free.save_pretrained(str(tmp_path / "free"), create_model_card=False)
        model = sparse_student(str(tmp_path / "free"), tiny.documents, queries="separate-model")
        expanded = next(module for module in free.modules() if isinstance(module, LexicalTerms)).expanded
        text = next(
            text
            for text in tiny.documents.texts
            if not expanded[free.tokenizer(text, add_special_tokens=False)["input_ids"]].all()
        )
        own = {token for token in free.tokenizer(text, add_special_tokens=False)["input_ids"] if not expanded[token]}
        assert own & set(SparseTextEncoder(model, "sparse:one").encode([text], "query").indices.tolist())


class TestScorer:
    @pytest.fixture
    def documents(self):
        generator = np.random.default_rng(0)
        weights = generator.random((9, 20), dtype=np.float32) * (generator.random((9, 20)) < 0.4)
        weights[4] = 0
        return weights.astype(np.float32)

    def batch(self):
        documents, own = np.array([[3, 4, -1], [0, 3, 8]]), np.array([3, -1])
        mask, places = torch.ones(2, 5, dtype=torch.bool), torch.tensor([0, -1])
        return ListBatch(np.arange(2), documents, torch.zeros(2, 5), mask, mask, places, own, np.array([1, 7]), False)

    def test_scores_and_gradients_are_those_of_dense_products(self, documents):
        scorer = StoredTermsScorer(csr_array(documents))
        queries = torch.rand(2, 20, generator=torch.Generator().manual_seed(0), requires_grad=True)
        found = scorer.lists(scorer.prepared([queries]), self.batch())
        rows = torch.tensor([[3, 4, 0, 1, 7], [0, 3, 8, 1, 7]])
        wanted = torch.einsum("bv,bnv->bn", queries, torch.from_numpy(documents)[rows])
        wanted = wanted * torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]])
        torch.testing.assert_close(found, wanted)
        ours, theirs = (torch.autograd.grad((each**2).sum(), queries)[0] for each in (found, wanted))
        torch.testing.assert_close(ours, theirs)
        own = scorer.own_documents(queries, self.batch())
        torch.testing.assert_close(own, queries @ torch.from_numpy(documents)[[3, 0]].T)

    def test_lists_over_the_corpus(self, documents):
        scorer, batch = StoredTermsScorer(csr_array(documents)), self.batch()
        whole = batch._replace(shared=np.arange(9), is_whole=True)
        queries = torch.rand(2, 20)
        for _ in range(2):
            found = scorer.lists(queries, whole)[:, 3:]
            torch.testing.assert_close(found, queries @ torch.from_numpy(documents).T)

    def test_regularizers_see_the_queries(self, documents):
        settings = RegularizerSettings(name="l1", weight=2.0, side="query", warmup=0)
        queries = torch.rand(2, 20)
        (value,) = StoredTermsScorer(csr_array(documents), [settings]).own_terms([queries], None, 1.0).values()
        assert float(value) == pytest.approx(float(queries.sum()))


class TestTraining:
    def test_queries_learn_and_documents_stay(self, model, data, tmp_path):
        student = settings()
        encoder = SparseTextEncoder(model, "sparse:one")
        before = [encoder.fingerprint(role) for role in ("query", "document")]
        history = run_stage(model, student.stages[0], data, tmp_path / "work", "")
        assert history.steps == 3
        after = SparseTextEncoder(model, "sparse:one")
        assert after.fingerprint("document") == before[1]
        assert after.fingerprint("query") != before[0]
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all({"agreement", "query_terms"} <= set(measured) for measured in history.monitors)

    def test_adapters_are_all_that_lora_trains(self, model, data, tmp_path, monkeypatch):
        trained = []

        def fit(run, loss, *given):
            trained.extend(name for name, parameter in run.student.model.named_parameters() if parameter.requires_grad)
            return History([], 0, 0.0)

        monkeypatch.setattr(dense, "fit", fit)
        stage = settings(stages=[{**STAGE, "lora": {"rank": 2}}]).stages[0]
        run_stage(model, stage, data, tmp_path / "work", "")
        assert any("lora_" in name for name in trained)
        assert all(".query." in name for name in trained)
        of_transformer = [name for name in trained if ".encoder." in name or ".embeddings." in name]
        assert all("lora_" in name for name in of_transformer)

    def test_the_same_seed_gives_the_same_weights(self, tiny, tiny_model, data, tmp_path):
        trained = []
        for place in ("one", "two"):
            model = sparse_student(tiny_model, tiny.documents, queries="separate-model", lexical_terms=True)
            run_stage(model, settings().stages[0], data, tmp_path / f"w{place}", "")
            trained.append(model.state_dict())
        assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])

    def test_conversations_are_taught_by_their_rewrites(self, tiny_folder, tiny_model, tmp_path):
        recipe = {
            "name": "sparse-disco",
            "collection": str(tiny_folder),
            "conversations": "made",
            "document_encoder": f"dense:{tiny_model}",
            "teacher": "bm25",
            "evaluation": {"latency_queries": 0, "examples": 0},
            "students": {
                "student": {
                    "model": f"sparse:{tiny_model}",
                    "queries": "separate-model",
                    "lexical_terms": True,
                    "stages": [
                        {
                            **STAGE,
                            "texts": {"titles": False},
                            "regularizers": [
                                {"name": "flops", "weight": 1e-3, "side": "query"},
                                {"name": "anti-zero", "weight": 1e-3, "side": "query"},
                            ],
                        }
                    ],
                }
            },
        }
        results = rd.run_recipe(Recipe.model_validate(recipe), tmp_path / "out")
        assert {"bm25", "control", "student", "rewrites"} <= {system.name for system in results.systems}
        index = rd.load_index(tmp_path / "out" / "indexes" / "student")
        assert len(index.search(["a star"], k=3)) == 3


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"queries": "inference-free"}, r"set queries: separate-model, or train: head"),
            ({"keep": {"heads": 0.5}}, r"keep cuts a student's one transformer"),
            ({"queries": "model", "lexical_terms": False}, r"set queries: separate-model"),
            ({"stages": [{**STAGE, "train": "head"}]}, r"train: head trains the head of the documents"),
            (
                {"stages": [{**STAGE, "regularizers": [{"name": "flops", "weight": 1}]}]},
                r"leaves documents as they are; set the regularizers' side: query",
            ),
            ({"head": "vdr", "lexical_terms": False}, r"head: vdr encodes queries as it does documents"),
        ],
    )
    def test_settings_that_contradict_each_other(self, given, message):
        with pytest.raises(pydantic.ValidationError, match=message):
            settings(**given)

    def test_a_model_for_queries_does_not_turn_into_weights(self, model, tiny, tmp_path):
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        with pytest.raises(UserError, match=r"set queries: separate-model"):
            sparse_student(str(tmp_path / "saved"), tiny.documents, queries="inference-free")

    def test_from_python_the_defaults_train_queries(self, tiny_model):
        given = complete_student({"model": f"sparse:{tiny_model}", "queries": "separate-model"}, ["kl"], {})
        (stage,) = StudentSettings.model_validate(given).stages
        assert stage.train == "query_encoder"
        assert {each.side for each in stage.regularizers} == {"query"}

    def test_lexical_terms_of_a_model_that_has_its_documents(self, model, tiny, tmp_path):
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        with pytest.raises(UserError, match=r"set lexical_terms: false"):
            sparse_student(str(tmp_path / "saved"), tiny.documents, queries="separate-model", lexical_terms=True)
