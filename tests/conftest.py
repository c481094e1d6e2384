"""A tiny collection and tiny models, made once per session; no test touches the network or the user's cache."""

from __future__ import annotations

import atexit
import copy
import gc
import json
import os
import random
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The code of models is copied there, by older versions of transformers under one name for all processes.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf-modules-")
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"  # read when it is imported
os.environ["MTEB_CACHE"] = tempfile.mkdtemp(prefix="mteb-")
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models spend their time waiting for each other's threads otherwise

import pytest
from hypothesis import HealthCheck, settings
from topics import FILLERS, TOPICS

from retrodistill.core.runtime import set_quiet
from retrodistill.data import Collection, load_collection

atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
atexit.register(shutil.rmtree, os.environ["MTEB_CACHE"], ignore_errors=True)
# The same examples every time; `make faults` takes more of them, by --hypothesis-profile=long.
_PROPERTIES = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=25, **_PROPERTIES)
settings.register_profile("long", max_examples=1000, **_PROPERTIES)
settings.load_profile("short")

_MADE_HERE = {}  # folders of models that no test changes, with their class


@pytest.fixture(autouse=True, scope="session")
def _libraries_are_not_garbage():
    """Each training collects garbage first; with the libraries in it, that takes longer than the training.

    What the tests that were collected import is set aside, and nothing more is imported for it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _float32():
    """``precision: auto`` is float32 on any machine, so that figures of tests do not depend on the processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrodistill.encoders.precision.bfloat16_speedup", lambda device: 1.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _copies_of_models():
    """Models of this file are read from their folders once and copied after that, in a tenth of the time."""
    from retrodistill.encoders import loading

    read, kept = loading._load, {}

    def load(name, class_name, *arguments, **options):
        key = (str(name), class_name, repr(options))
        if _MADE_HERE.get(str(name)) != class_name:  # another class may draw a head at random
            return read(name, class_name, *arguments, **options)
        if key not in kept:
            kept[key] = read(name, class_name, *arguments, **options)
        return copy.deepcopy(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_load", load)
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRODISTILL_CACHE", str(tmp_path / "cache"))
    set_quiet(True)


@pytest.fixture
def server():
    """A server of scores and vectors, as an API has them."""
    from api_server import serving

    with serving() as started:
        yield started


@pytest.fixture
def quick_retries(monkeypatch):
    """Requests to an API are repeated at once."""
    monkeypatch.setattr("retrodistill.core.http._FIRST_PAUSE", 0.001)


@pytest.fixture(autouse=True)
def _no_process_for_memory(monkeypatch):
    """Measuring memory starts a process for each system of a job: what that does is tested where it stands."""
    monkeypatch.setattr("retrodistill.evaluation.cost.peak_memory", lambda *_: {"peak_bytes": 123_000_000})


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A BEIR folder: 60 documents, 48 train, 6 dev and 12 test queries about six topics."""
    folder = tmp_path_factory.mktemp("tiny")
    generator = random.Random(0)
    documents, queries, judged = [], [], {"train": [], "dev": [], "test": []}
    for number in range(60):
        topic = list(TOPICS)[number % len(TOPICS)]
        words = generator.sample(TOPICS[topic], 5)
        title = f"{words[0]} and {words[1]}"
        body = " ".join(
            f"{generator.choice(FILLERS)} {word} {generator.choice(FILLERS)} {generator.choice(words)} today."
            for word in words
        )
        documents.append({"_id": f"d{number}", "title": title, "text": body})
        if number < 48 or number >= 54:
            asked = " ".join(generator.sample(words, 3))
            split = "train" if number < 42 else "dev" if number < 48 else "test"
            queries.append({"_id": f"q{number}", "text": f"what {asked}"})
            judged[split].append((f"q{number}", f"d{number}", 1))
    for number in range(6):
        topic = list(TOPICS)[number]
        queries.append({"_id": f"t{number}", "text": f"all about {' '.join(TOPICS[topic][:2])}"})
        judged["test"] += [(f"t{number}", f"d{place}", 1 + place % 2) for place in range(number, 60, 6)]
    _write_lines(folder / "corpus.jsonl", documents)
    _write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir()
    for split, rows in judged.items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in rows)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def tiny(tiny_folder) -> Collection:
    """The tiny collection, loaded."""
    return load_collection(tiny_folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Folder of a bi-encoder: two BERT layers of width 32, word tokens of the tiny collection, mean, cosine."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    folder = tmp_path_factory.mktemp("models")
    bert = _bert(folder / "bert")
    model = SentenceTransformer(modules=[Transformer(str(bert), max_seq_length=64), Pooling(32), Normalize()])
    model.save_pretrained(str(folder / "bi-encoder"), create_model_card=False)
    _MADE_HERE[str(folder / "bi-encoder")] = "SentenceTransformer"
    return str(folder / "bi-encoder")


@pytest.fixture(scope="module")
def tiny_tokens(tiny_model):
    """The tiny model as an untrained multi-vector encoder of sentence-transformers: its tokens, of width 32."""
    from retrodistill.encoders.multi_vector import token_encoder

    return token_encoder(tiny_model)


@pytest.fixture
def tiny_multi(tiny_tokens):
    """The encoder of `tiny_tokens`."""
    from retrodistill.encoders import load_encoder

    return load_encoder(tiny_tokens)


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory) -> str:
    """Folder of a cross-encoder with one label, two BERT layers of width 32."""
    from sentence_transformers import CrossEncoder

    folder = tmp_path_factory.mktemp("cross")
    model = CrossEncoder(str(_bert(folder / "bert")), num_labels=1)
    model.save_pretrained(str(folder / "cross-encoder"))
    _MADE_HERE[str(folder / "cross-encoder")] = "CrossEncoder"
    return str(folder / "cross-encoder")


@pytest.fixture(scope="session")
def tiny_static(tmp_path_factory, tiny_model) -> str:
    """Folder of a token table of width 32 over the tiny model's tokenizer, made without retrodistill."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{tiny_model}/tokenizer.json")
    tokenizer.no_truncation()
    rows = torch.randn(tokenizer.get_vocab_size(), 32, generator=torch.Generator().manual_seed(1))
    table = StaticEmbedding(tokenizer, embedding_weights=rows)
    model = SentenceTransformer(modules=[table, Normalize()], similarity_fn_name="cosine", device="cpu")
    folder = tmp_path_factory.mktemp("static")
    model.save_pretrained(str(folder / "table"), create_model_card=False)
    _MADE_HERE[str(folder / "table")] = "SentenceTransformer"
    return str(folder / "table")


@pytest.fixture(scope="session")
def tiny_seq2seq(tmp_path_factory, tiny_folder) -> str:
    """Folder of a T5 with two layers of width 32 and random weights, over the words of the tiny collection."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = sorted({word for text in load_collection(tiny_folder).documents.texts for word in text.split()})
    vocabulary = ["<pad>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    folder = str(tmp_path_factory.mktemp("seq2seq"))
    T5ForConditionalGeneration(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder)
    return folder


def _bert(folder):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    words = sorted({word for topic in TOPICS.values() for word in topic} | set(FILLERS) | {"what", "all", "about"})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "today", *words]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def _write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def call(capsys):
    """Run the command line in this process: (exit status, standard output, standard error)."""
    from retrodistill import cli

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run
