import re

import pytest
import sparse_models
import yaml
from huggingface_hub import ModelCard
from sample_results import results, section, system
from sentence_transformers import CrossEncoder, SentenceTransformer

from retrodistill.encoders.modules import exit_model
from retrodistill.indexes import build_index
from retrodistill.report import columns, results_text
from retrodistill.report.card import Facts, Teaching, Turns, card_text, placeholder, published, write_card
from retrodistill.report.columns import Column
from retrodistill.students.dense import dense_student
from retrodistill.students.dense_variants import multi_exit
from retrodistill.students.hybrid import hybrid_student
from retrodistill.students.multi_vector import multi_vector_student
from retrodistill.students.prett import prett_student
from retrodistill.students.sparse import sparse_student
from retrodistill.students.tk import tk_student
from retrodistill.students.vdr import own_token_queries
from retrodistill.training.settings import StageSettings

HEADINGS = [
    "Usage", "Measured quality", "Cost", "Teacher", "Training", "Model Details", "Provenance", "Limits", "Citation",
]  # fmt: skip

KINDS = ["static", "dense", "hybrid", "sparse", "multi-vector", "cross-encoder", "prett", "tk"]


def facts(kind="dense", **changed):
    values = {
        "name": "student",
        "kind": kind,
        "start": "dense:all-MiniLM-L6-v2",
        "collection": "scifact",
        "documents": 5183,
        "queries": 809,
        "teaching": Teaching([("bm25", 0.3), ("dense:all-MiniLM-L6-v2", 0.7)], "zscore-per-query", "22bb"),
        "stages": [StageSettings.model_validate({"objectives": [{"name": "kl"}, {"name": "leaf", "weight": 0.5}]})],
        "learned": [
            {
                "texts": 20000,
                "queries": 809,
                "held_out": 64,
                "pairs": 3200000,
                "sources": ["bm25", "dense:all-MiniLM-L6-v2"],
                "temperatures": {"kl": {"student": 0.05, "teacher": 1.25}},
                "steps": 900,
                "seconds": 61.0,
            }
        ],
        "seconds": 61.0,
        "seed": 7,
        "inputs": {"corpus": "11aa"},
        "versions": {"torch": "2.13.0"},
        "hardware": {"processor": "Some CPU", "cores": 2, "memory_gib": 8.0, "gpu": None},
    }
    return Facts(**{**values, **changed})


@pytest.fixture
def model_of(tiny, tiny_model, tiny_static, tiny_cross_encoder, tmp_path):
    made = {
        "static": lambda: SentenceTransformer(tiny_static),
        "dense": lambda: dense_student(tiny_model),
        "hybrid": lambda: hybrid_student(dense_student(tiny_model), 16, tiny.documents),
        "sparse": lambda: sparse_models.inference_free(tmp_path / "sparse"),
        "multi-vector": lambda: multi_vector_student(tiny_model, tiny.documents.texts, dimension=8),
        "cross-encoder": lambda: CrossEncoder(tiny_cross_encoder),
        "prett": lambda: prett_student(tiny_cross_encoder, tiny.documents.texts),
        "tk": lambda: tk_student(tiny_model, tiny.documents.texts),
    }
    return lambda kind: made[kind]()


class TestEveryKind:
    @pytest.mark.parametrize("kind", KINDS)
    def test_has_a_card_that_the_hub_reads(self, kind, model_of):
        model = model_of(kind)
        text = card_text(model, facts(kind), results())
        card = ModelCard(text)
        assert card.data.library_name == "sentence-transformers"
        assert {"retrodistill", "knowledge-distillation", "sentence-transformers"} <= set(card.data.tags)
        found = {one.metric_type: one.metric_value for one in card.data.eval_results}
        assert found == {"ndcg@10": 0.69, "mrr@10": 0.655, "recall@100": 0.94}
        assert {(one.dataset_name, one.dataset_split) for one in card.data.eval_results} == {("scifact", "test")}
        assert re.findall(r"^## (.*)$", card.text, re.MULTILINE) == HEADINGS
        assert "Full Model Architecture" in text
        assert f"{type(model).__name__}(" in text
        assert "<!--" not in text

    def test_the_example_calls_what_its_class_has(self, model_of):
        calls = {
            "dense": "model.encode_document(documents)",
            "sparse": "SparseEncoder(",
            "multi-vector": "model.encode_document(documents)",
            "cross-encoder": "model.predict(",
        }
        for kind, call in calls.items():
            assert call in card_text(model_of(kind), facts(kind))

    def test_the_example_of_a_sparse_student_runs(self, model_of, tmp_path):
        model = model_of("sparse")
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        code = card_text(model, facts("sparse")).split("```python")[1].split("```")[0]
        names = {}
        exec(code.replace(model._model_card_model_id_placeholder, str(tmp_path / "saved")), names)
        assert names["scores"].shape == (1, 2)

    def test_the_users_model_is_left_as_it_was(self, model_of):
        model = model_of("dense")
        before = (list(model.model_card_data.tags), model.model_card_data.model_name)
        card_text(model, facts())
        assert (model.model_card_data.tags, model.model_card_data.model_name) == before


class TestTwoEncoders:
    @pytest.fixture
    def text(self, model_of):
        return card_text(model_of("static"), facts("static", documents_by="dense:all-MiniLM-L6-v2"), results())

    def test_the_example_encodes_documents_by_their_own_model(self, text):
        code = text.split("## Usage")[1].split("```python")[1].split("```")[0]
        assert 'encoder = SentenceTransformer("all-MiniLM-L6-v2")' in code
        assert "encoder.encode_document(" in code
        assert "model.encode_document(" not in code

    def test_the_example_runs(self, text, tiny_static, tiny_model):
        code = text.split("## Usage")[1].split("```python")[1].split("```")[0]
        code = code.replace("sentence_transformers_model_id", tiny_static).replace("all-MiniLM-L6-v2", tiny_model)
        names = {}
        exec(code, names)
        assert names["scores"].shape == (1, 2)

    def test_the_index_is_given_both(self, text):
        assert 'documents="dense:all-MiniLM-L6-v2", queries="static:FOLDER"' in text

    def test_vectors_made_elsewhere_have_no_encoder_to_load(self, model_of):
        text = card_text(model_of("static"), facts("static", documents_by="vectors:api"))
        assert 'np.load("documents.npy")' in text
        assert 'SentenceTransformer("api")' not in text


class TestWhatItSays:
    @pytest.fixture
    def text(self, model_of):
        return card_text(model_of("dense"), facts(), results())

    def test_teachers_with_their_weights_and_fusion(self, text):
        assert "| `bm25` | 0.3 |" in text
        assert "| `dense:all-MiniLM-L6-v2` | 0.7 |" in text
        assert "Fused by `zscore-per-query`" in text

    def test_candidates_calibration_texts_and_time(self, text):
        assert "candidates: 100 from each source (`bm25`, `dense:all-MiniLM-L6-v2`); 3,200,000 scored pairs" in text
        assert "calibration of kl: student scores over 0.05, teacher scores over 1.25" in text
        assert "texts: 20,000, of which 809 are real queries and 64 are held out" in text
        assert "900 steps in 1 min 1 s" in text

    def test_a_stages_own_teacher_and_whatever_else_it_sets(self, model_of):
        stage = {"objectives": "kl", "teacher": "bm25", "matryoshka": [16, 8], "candidates": {"budget": "25%"}}
        text = card_text(model_of("dense"), facts(stages=[StageSettings.model_validate(stage)], learned=[]))
        assert "- teacher of this stage: 1 `bm25`" in text
        assert "that learned from bm25, with retrodistill" in text
        assert "- matryoshka: 16, 8" in text
        assert "of which the teacher scored 25%" in text
        assert "batches: shuffled" not in text

    def test_several_teachers_in_the_order_of_the_stages(self, model_of):
        own = {"objectives": "bce", "labels": "sigmoid", "teacher": "cross-encoder:judge"}
        stages = [StageSettings.model_validate(stage) for stage in ({"objectives": "kl"}, own)]
        text = card_text(model_of("dense"), facts(stages=stages, learned=[], teaching=Teaching([("bm25", 1.0)])))
        assert "that learned from bm25, then cross-encoder:judge, with retrodistill" in text
        assert "- labels: sigmoid" in text
        assert "Stages with their own teacher name it under Training." in text

    def test_its_form(self, model_of):
        changes = {"clusters": "C8x32", "exits": [2, 4], "project exits": True, "head": "vdr", "lexical terms": True}
        text = card_text(model_of("dense"), facts(changes=changes))
        assert ", clusters C8x32, exits 2, 4, project exits, head vdr, lexical terms; trained on" in text

    def test_the_measured_table_with_significance(self, text):
        assert "scifact, split test, 300 queries." in text
        line = next(line for line in text.splitlines() if line.startswith("| ensemble (teacher)"))
        assert "0.733" in line
        assert "−0.043 (−0.066 to −0.021, p < 0.001)" in line
        assert next(line for line in text.splitlines() if line.startswith("| **student**")).count("**0.690**") == 1

    def test_cost_and_machine(self, text):
        assert "| student | 0.12 / 0.20 | 1,536 |" in text
        assert "Some CPU, 2 cores, 8.0 GiB, no GPU" in text

    def test_seed_versions_fingerprints_and_command(self, text):
        for line in (
            "- seed: 7", "torch 2.13.0", "corpus `11aa`", "teacher `22bb`", "command: `retrodistill run configs/",
        ):  # fmt: skip
            assert line in text

    def test_methods_with_their_papers(self, text):
        assert "[arXiv 2509.12539](https://arxiv.org/abs/2509.12539)" in text
        assert "reimers-2019-sentence-bert" in text

    def test_a_better_baseline_is_not_hidden(self, model_of):
        better = results(systems=[system("bm25", "baseline", ndcg10=0.7), system()], taught_by=None, comparisons=[])
        text = card_text(model_of("dense"), facts(), better)
        assert "baseline bm25 has nDCG@10 0.700, at least as high as its own" in text

    def test_the_control_of_another_student_is_not_shown(self, model_of):
        others = [*results().systems, system("other-control", "control"), system("other")]
        text = card_text(model_of("dense"), facts(), results(systems=others))
        assert "other" not in text.split("## Measured quality")[1].split("## Teacher")[0].replace("others", "")


class TestUnmeasured:
    def test_it_says_so_and_claims_nothing(self, model_of):
        text = card_text(model_of("dense"), facts())
        front = yaml.safe_load(text.split("---\n")[1])
        assert "model-index" not in front
        assert "Its quality has not been measured." in text
        assert "Serving was not measured." in text

    def test_a_collection_without_judgments(self, model_of):
        blind = system(ndcg10=None, mrr10=None, recall100=None, retention=None)
        text = card_text(model_of("dense"), facts(), results(systems=[blind], taught_by=None, comparisons=[]))
        assert "scifact has no judgments" in text
        assert "model-index" not in yaml.safe_load(text.split("---\n")[1])

    def test_an_older_student_without_a_record_of_its_stages(self, model_of):
        assert "objectives: 1 kl + 0.5 leaf" in card_text(model_of("dense"), facts(learned=[]))


class TestWriting:
    def test_loading_and_saving_on_keeps_the_card(self, model_of, tmp_path):
        model = model_of("dense")
        model.save_pretrained(str(tmp_path / "student"), create_model_card=False)
        write_card(model, facts(), tmp_path / "student", results())
        written = (tmp_path / "student" / "README.md").read_text(encoding="utf-8")
        SentenceTransformer(str(tmp_path / "student")).save_pretrained(str(tmp_path / "copy"))
        assert (tmp_path / "copy" / "README.md").read_text(encoding="utf-8") == written


def python_after(text, words):
    """The first example in Python behind some words of the card."""
    return text.split(words)[1].split("```python\n")[1].split("```")[0]


class TestSources:
    def test_public_names_stand_as_they_are_and_folders_without_their_place(self, tmp_path):
        for name in ("demo", "beir/scifact", "ir_datasets:cranfield", "hf:BeIR/scifact"):
            assert published(name) == name
        (tmp_path / "small").mkdir()
        for source in (tmp_path / "small", str(tmp_path / "small")):
            assert published(source) == "FOLDER/OF/small"
        assert published(f"hf:{tmp_path / 'small'}") == "hf:FOLDER/OF/small"

    @pytest.mark.parametrize("kind", ["dense", "tk"])
    def test_the_example_loads_the_recipes_source(self, model_of, kind):
        model = model_of(kind)
        text = card_text(model, facts(kind, source="beir/scifact"))
        assert 'rd.load_collection("beir/scifact")' in text
        assert "# FOLDER/OF/..." not in text
        text = card_text(model, facts(kind, collection="small"))
        assert 'rd.load_collection("FOLDER/OF/small")' in text
        assert "# FOLDER/OF/..." in text

    def test_a_collection_of_passages_is_loaded_as_such(self, model_of):
        text = card_text(model_of("static"), facts("static", source="beir/scifact", passages="120,20"), results())
        assert 'rd.load_collection("beir/scifact", passages="120,20")' in text
        assert "documents in passages" in text

    def test_the_example_of_a_reranker_names_its_kind(self, model_of):
        assert 'rd.evaluate("rerank:tk:FOLDER@bm25", collection)' in card_text(model_of("tk"), facts("tk"))

    def test_the_example_of_the_package_runs(self, model_of, tiny_folder, tmp_path):
        model = model_of("dense")
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        code = python_after(card_text(model, facts(collection="small")), "With retrodistill, whose index")
        code = code.replace("FOLDER/OF/small", str(tiny_folder)).replace(":FOLDER", f":{tmp_path / 'saved'}")
        names = {}
        exec(code, names)
        assert len(names["index"].ids) == 60


class TestConversations:
    def test_their_form_and_what_teachers_were_asked(self, model_of):
        turns = Turns("FOLDER/OF/turns.jsonl", history=3, responses=False)
        text = card_text(model_of("dense"), facts(turns=turns, rewritten=["rewrites"], source="beir/scifact"))
        used = text.split("## Usage")[1].split("## Measured quality")[0]
        assert "the current utterance first, then at most 3 earlier turns, newest first" in used
        assert "joined by ` | `" in used
        assert 'load_conversations("FOLDER/OF/turns.jsonl", history=3, responses=False)' in used
        assert 'conversations.of(rd.load_collection("beir/scifact"))' in used
        assert 'index.search("How many moons does it have? | Which planet' in used
        assert "teacher's queries were the rewrites" in text

    def test_the_control_was_taught_by_conversations(self, model_of):
        text = card_text(model_of("dense"), facts(turns=Turns(None)))
        assert "teacher's queries were the same conversations" in text
        assert "load_conversations" not in text

    def test_what_the_student_makes_of_rewrites_is_no_competitor(self, model_of):
        rows = [*results().systems, system("rewrites", "baseline", ndcg10=0.9)]
        text = card_text(model_of("dense"), facts(turns=Turns(None), rewritten=["rewrites"]), results(systems=rows))
        assert "| rewrites (the first student on rewritten queries) | 0.900" in text
        assert "at least as high as its own" not in text


class TestForms:
    def test_exits_are_measured_and_told_how_to_use(self, tiny_model, tmp_path):
        model = multi_exit(dense_student(tiny_model), [1])
        rows = [*results().systems, system("student@exit-1", ndcg10=0.61, query_ms={"p50": 0.15, "p95": 0.26})]
        rows += [system("other@exit-1", ndcg10=0.11)]
        text = card_text(model, facts(), results(systems=rows))
        assert "| student@exit-1 | 0.610" in text
        assert "| student@exit-1 | 0.15 / 0.26 |" in text
        assert "other@exit-1" not in text
        assert "`dense:FOLDER@exit-1`" in text
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        code = python_after(text, "It can also stop after layer 1")
        names = {}
        exec(code.replace("sentence_transformers_model_id", str(tmp_path / "saved")), names)
        alone = exit_model(model, 1).encode(["Which planet is known as the Red Planet?"])
        assert names["queries"] == pytest.approx(alone, abs=1e-5)

    def test_truncations_that_were_trained_or_measured(self, model_of):
        stage = StageSettings.model_validate({"objectives": "kl", "matryoshka": [16]})
        rows = [*results().systems, system("student@8", ndcg10=0.6)]
        text = card_text(model_of("dense"), facts(stages=[stage], learned=[]), results(systems=rows))
        assert "| student@8 | 0.600" in text
        assert "The leading 16, 8 dimensions are vectors too." in text
        assert "truncate_dim=8)" in text
        assert 'rd.build_index(collection, "dense:FOLDER", truncate=8)' in text

    def test_own_token_queries_of_a_vdr_head(self, tiny, tiny_model, tmp_path):
        model = sparse_student(tiny_model, tiny.documents, head="vdr")
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        rows = [*results().systems, system("student@own-tokens", ndcg10=0.5)]
        text = card_text(model, facts("sparse", own_modules=True), results(systems=rows))
        assert "| student@own-tokens | 0.500" in text
        assert f'SparseEncoder("{placeholder(model)}", trust_remote_code=True)' in text
        code = python_after(text, "Queries can be their own tokens")
        names = {}
        exec(code.replace(placeholder(model), str(tmp_path / "saved")), names)
        assert names["queries"].shape[0] == 1
        index = build_index(tiny, f"sparse:{tmp_path / 'saved'}", own_token_queries(names["model"]))
        assert len(index.ids) == 60

    def test_a_student_without_forms_tells_of_none(self, model_of):
        text = card_text(model_of("dense"), facts(), results())
        assert "It can also stop" not in text
        assert "truncate_dim" not in text


class TestSettingsInWords:
    def test_a_selection_says_how_many_it_left(self, model_of):
        stage = {"objectives": "kl", "selection": {"ranks": [2, 20]}, "training": {"epochs": 1}}
        known = {**facts().learned[0], "selected": 312}
        text = card_text(model_of("dense"), facts(stages=[StageSettings.model_validate(stage)], learned=[known]))
        assert "selection: trained on 312 of 20,000 texts" in text
        assert "(rank 2 to 20), by the labels" in text
        assert "1 epoch," in text
        assert "{'" not in text.split("## Training")[1].split("## Model Details")[0]

    def test_settings_within_settings(self, model_of):
        changes = {"heads": [{"by_default": True, "width": None}]}
        assert ", heads by default yes, width none; trained on" in card_text(model_of("dense"), facts(changes=changes))


class TestAddingAColumn:
    def test_one_line_adds_it_to_the_page_the_terminal_and_the_card(self, model_of, monkeypatch):
        added = Column("letters", lambda system: len(system.name), lambda count: f"{count} letters")
        monkeypatch.setattr(columns, "_SERVING", (*columns._SERVING, added))
        for text in (
            section("systems", results()),
            results_text(results(), width=140),
            card_text(model_of("static"), facts("static"), results()),
        ):
            assert "7 letters" in text  # of "student"
