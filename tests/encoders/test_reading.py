"""Texts that a model cannot read have no vector anywhere, and documents that are longer than it reads are counted."""

import pytest
from sparse_models import inference_free, splade
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.data.passages import with_passages
from retrodistill.data.texts import Texts
from retrodistill.encoders import load_encoder
from retrodistill.encoders.multi_vector import token_encoder
from retrodistill.encoders.reading import Reader, count_longer, length_warning
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers import load_ranker

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
UNREAD = {"greek": "καλημέρα κόσμε.", "faces": "😀 😀", "nothing": "", "joiner": "\u200b"}  # by the tiny models
SOME = ["star", "Star!", "καλημέρα", "καλημέρα star", "日本", "日本 7", "😀", "", "  ", "\u3164", "[SEP]", "x日",
        "x日x", "ℝ1", "κόσμε—", "—", "é", "日" * 60 + " star", "日" * 60, "a\u0301", "_", "7"]  # fmt: skip


@pytest.fixture
def long() -> Collection:
    """30 documents of 100 tokens, 20 of 10."""
    texts = {f"long{number}": "heart star " * 50 for number in range(30)}
    texts |= {f"short{number}": "heart star " * 5 for number in range(20)}
    return Collection.from_parts("long", texts, {}, {})


def word_pieces():
    """Knows all letters, and the syllables of one script."""
    tokens = ["[UNK]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "日", "—"]
    tokenizer = Tokenizer(models.WordPiece({token: id_ for id_, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


def sentence_pieces():
    """Has a token for the space before a word, which says nothing of the word."""
    pieces = [(token, -1.0) for token in ["<unk>", "\u2581", *LETTERS, *LETTERS[:26].upper(), "_"]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def bytes_of_text():
    """Knows every byte, and so every text."""
    vocab = {token: id_ for id_, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    return tokenizer


def words():
    """Knows two words only."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "star": 1, "7": 2}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    return tokenizer


TOKENIZERS = {
    "word pieces": (word_pieces, ["καλημέρα", "κόσμε—", "😀", "", "  ", "\u3164", "ℝ1", "_"]),
    "sentence pieces": (sentence_pieces, ["καλημέρα", "κόσμε—", "日本", "😀", "", "  ", "\u3164", "—", "é", "日" * 60]),
    "bytes": (bytes_of_text, ["", "  ", "\u3164"]),
    "words": (words, sorted({*SOME} - {"star", "Star!", "καλημέρα star", "日本 7", "日" * 60 + " star", "7"})),
}


@pytest.fixture
def encoders(tiny_model, tiny_static, tmp_path):
    return {
        "dense": load_encoder(f"dense:{tiny_model}"),
        "static": load_encoder(f"static:{tiny_static}"),
        "multi-vector": load_encoder(token_encoder(tiny_model)),
        "sparse": load_encoder(splade(tmp_path / "splade")),
        "inference-free": load_encoder(inference_free(tmp_path / "free")),
    }


@pytest.fixture
def mixed(tiny):
    """The tiny collection with four documents and four queries that the tiny models cannot read."""
    qrels = {split: judged.to_dict() for split, judged in tiny.qrels.items()}
    return Collection.from_parts("mixed", {**UNREAD, **dict(tiny.documents)}, {**UNREAD, **dict(tiny.queries)}, qrels)


class TestReading:
    @pytest.mark.parametrize("name", TOKENIZERS)
    def test_a_text_without_a_known_token_is_not_read(self, name):
        make, expected = TOKENIZERS[name]
        reader = Reader(make())
        assert {SOME[row] for row in reader.unreadable(SOME)} == set(expected)

    @pytest.mark.parametrize("name", TOKENIZERS)
    def test_a_corpus_is_read_as_its_texts(self, name):
        reader = Reader(TOKENIZERS[name][0]())
        texts = Texts.from_pairs((str(row), text) for row, text in enumerate(SOME))
        assert reader.unreadable_rows(texts).tolist() == reader.unreadable(SOME)

    def test_without_a_tokenizer_only_blank_texts_are_not(self):
        assert [SOME[row] for row in Reader(None).unreadable(SOME)] == ["", "  ", "\u3164"]

    def test_few_texts_of_a_corpus_are_tokenized(self, monkeypatch):
        tokenized = []
        monkeypatch.setattr(Reader, "unreadable", lambda self, texts: tokenized.extend(texts) or [])
        Reader(word_pieces()).unreadable_rows(Texts.from_pairs([("a", "star"), ("b", "日本"), ("c", "日 7")]))
        assert tokenized == ["日本"]


class TestSearch:
    @pytest.mark.parametrize("kind", ["dense", "static", "multi-vector", "sparse", "inference-free"])
    def test_finds_none_and_finds_nothing_for_one(self, mixed, tiny, encoders, kind, tmp_path):
        index = build_index(mixed, encoders[kind])
        index.save(tmp_path / "index")
        loaded = load_index(tmp_path / "index", encoders[kind])
        for ranker in (load_ranker(encoders[kind]), index, loaded):
            found, expected = ranker.search(mixed.queries, mixed, 60), ranker.search(tiny.queries, tiny, 60)
            assert found.to_dict() == expected.to_dict()
        assert (len(loaded), len(loaded.search(UNREAD["faces"], k=3)), loaded.changes(mixed)) == (60, 0, None)

    def test_adding_leaves_them_out_and_the_index_knows_it(self, mixed, tiny, encoders, tmp_path):
        index = build_index(tiny, encoders["dense"])
        index.add(Texts.from_pairs(UNREAD.items()))
        assert (index.ids, index.left_out) == (tiny.documents.ids, UNREAD.keys())
        index.save(tmp_path / "index")
        loaded = load_index(tmp_path / "index", encoders["dense"])
        assert loaded.changes(mixed) is None
        with pytest.raises(UserError, match="cannot remove 'strange'"):
            loaded.remove(["faces", "strange"])
        assert loaded.left_out == UNREAD.keys()
        loaded.remove(["faces", "nothing"])
        assert (len(loaded), loaded.left_out) == (60, {"greek", "joiner"})
        loaded.add(Texts.from_pairs([("greek", "a star")]))
        assert (len(loaded), loaded.left_out) == (61, {"joiner"})
        with pytest.raises(UserError, match="cannot remove 'faces'"):
            loaded.remove(["faces"])

    def test_says_once_which_documents_it_cannot_find(self, mixed, encoders, capsys, monkeypatch):
        from retrodistill.core.runtime import set_quiet

        set_quiet(False)
        monkeypatch.setattr("retrodistill.encoders.reading._SAID", set())
        for _ in range(2):
            build_index(mixed, encoders["static"])
        said = capsys.readouterr().err
        assert all(said.count(fact) == 1 for fact in ("warning: 2 documents", "('greek', 'faces')"))


class TestCounting:
    def test_documents_beyond_the_models_length_count(self, long, tiny_model):
        assert count_longer(load_encoder(f"dense:{tiny_model}"), long.documents) == 30

    def test_a_token_table_reads_whole_texts(self, long, tiny_static):
        assert count_longer(load_encoder(f"static:{tiny_static}"), long.documents) == 0

    def test_few_documents_are_tokenized(self, long, tiny_model, monkeypatch):
        encoder = load_encoder(f"dense:{tiny_model}")
        monkeypatch.setattr("retrodistill.encoders.reading._SAMPLE", 3)
        read = []
        tokenizer = encoder.model[0].tokenizer
        monkeypatch.setattr(
            type(tokenizer), "__call__", lambda self, texts, **_: read.extend(texts) or {"input_ids": [[0] * 100] * 3}
        )
        count_longer(encoder, long.documents)
        assert len(read) == 3


class TestWarning:
    def test_it_names_the_numbers_and_the_model(self, long, tiny_model):
        line = length_warning(load_encoder(f"dense:{tiny_model}"), long)
        assert all(fact in line for fact in ("30 of 50", "64 tokens", tiny_model, "passages"))

    def test_passages_that_fit_need_none(self, long, tiny_model):
        assert length_warning(load_encoder(f"dense:{tiny_model}"), with_passages(long, "40,0")) is None

    def test_an_index_of_long_documents_says_so_once(self, long, tiny_model, capsys, monkeypatch):
        from retrodistill.core.runtime import set_quiet

        set_quiet(False)
        monkeypatch.setattr("retrodistill.encoders.reading._SAID", set())
        build_index(long, f"dense:{tiny_model}")
        build_index(long, f"dense:{tiny_model}")
        assert capsys.readouterr().err.count("30 of 50") == 1
