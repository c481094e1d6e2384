"""Tokenizers that are cut to some tokens: texts of these are read as before, and others in smaller pieces."""

import json
import random

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from topics import FILLERS, TOPICS

from retrodistill.core.errors import UserError
from retrodistill.encoders.vocabulary import count_texts, kept_tokens, with_tokens

WORDS = [*sorted({word for topic in TOPICS.values() for word in topic}), *FILLERS]
LEARNED = [" ".join(random.Random(seed).choices([*WORDS, "naïve", "42", "co-op"], k=30)) for seed in range(40)]
TEXTS = ["the star and the planet", "a violin concerto, what else", "star 42"]
OTHERS = ["unheard-of zygotes", "recipe of garlic butter", "naïve co-op", "x"]
FRAME = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(LEARNED, trainers.WordPieceTrainer(vocab_size=300))
    names = sorted(tokenizer.get_vocab())
    names[40:40] = FRAME  # as in BERT's files, special tokens are not the first
    place = {token: number for number, token in enumerate(names)}
    tokenizer.model = models.WordPiece(place, unk_token="[UNK]")
    tokenizer.add_special_tokens(FRAME)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", place["[SEP]"]), ("[CLS]", place["[CLS]"]))
    return tokenizer


def bytes_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(LEARNED, trainer)
    tokenizer.add_special_tokens(["<mask>"])  # behind the others, as RoBERTa has it
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def suffixed_bpe():
    """As CLIP has it: a mark at the end of words, and merges as text with a space between, as old files have them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(LEARNED, trainer)
    written = json.loads(tokenizer.to_str())
    written["model"]["merges"] = [" ".join(merge) for merge in written["model"]["merges"]]
    return Tokenizer.from_str(json.dumps(written))


def fallback_bpe():
    """As Llama has it: the rest in tokens of single bytes."""
    merged = Tokenizer(models.BPE())
    merged.pre_tokenizer = pre_tokenizers.Metaspace()
    merged.train_from_iterator(LEARNED, trainers.BpeTrainer(vocab_size=200))
    content = json.loads(merged.to_str())["model"]
    names = ["<unk>", *(f"<0x{number:02X}>" for number in range(256)), *content["vocab"]]
    vocabulary = {name: place for place, name in enumerate(names)}
    pairs = [tuple(merge) for merge in content["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=220, special_tokens=specials, unk_token="<unk>")
    tokenizer.train_from_iterator(LEARNED, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.Sequence([
        processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    ])  # fmt: skip
    return tokenizer


FAMILIES = {make.__name__: make for make in (wordpiece, bytes_bpe, suffixed_bpe, fallback_bpe, unigram)}


@pytest.fixture(scope="module", params=FAMILIES)
def cut(request):
    """A tokenizer, and the same with what `TEXTS` need."""
    tokenizer = FAMILIES[request.param]()
    kept = kept_tokens(tokenizer, np.flatnonzero(count_texts(tokenizer, TEXTS)))
    return tokenizer, with_tokens(tokenizer, kept), kept


class TestACutTokenizer:
    def test_reads_the_texts_as_before_with_their_special_tokens(self, cut):
        whole, small, _ = cut
        assert small.get_vocab_size() < whole.get_vocab_size()
        for text in TEXTS:
            assert small.encode(text).tokens == whole.encode(text).tokens

    def test_ids_are_places_among_the_kept_ones(self, cut):
        whole, small, kept = cut
        assert sorted(small.get_vocab().values()) == list(range(len(kept)))
        for text in TEXTS:
            assert kept[small.encode(text).ids].tolist() == whole.encode(text).ids

    def test_what_was_readable_stays_readable(self, cut):
        whole, small, _ = cut
        unknown = {"[UNK]", "<unk>"}
        for text in [*OTHERS, *LEARNED]:
            before, after = (set(each.encode(text).tokens) & unknown for each in (whole, small))
            assert after <= before
            assert len(small.encode(text)) >= len(whole.encode(text))

    def test_special_tokens_stay(self, cut):
        whole, small, _ = cut
        names = {str(token.content) for token in whole.get_added_tokens_decoder().values()}
        assert names == {str(token.content) for token in small.get_added_tokens_decoder().values()}
        assert names <= small.get_vocab().keys()


class TestTransformers:
    """Classes of transformers build their tokenizers anew from the parts of the file that was saved."""

    @pytest.mark.parametrize(
        ("name", "family"),
        [
            ("BertTokenizer", wordpiece),
            ("RobertaTokenizer", bytes_bpe),
            ("Qwen2Tokenizer", bytes_bpe),
            ("LlamaTokenizer", fallback_bpe),
            ("XLMRobertaTokenizer", unigram),
            ("DebertaV2Tokenizer", unigram),
        ],
    )
    def test_read_what_was_saved(self, name, family, tmp_path):
        model = json.loads(family().to_str())["model"]
        merges = {"merges": [tuple(merge) for merge in model["merges"]]} if "merges" in model else {}
        pieces = [tuple(piece) for piece in model["vocab"]] if isinstance(model["vocab"], list) else model["vocab"]
        whole = getattr(transformers, name)(vocab=pieces, **merges)
        kept = kept_tokens(whole.backend_tokenizer, np.flatnonzero(count_texts(whole.backend_tokenizer, TEXTS)))
        before = [whole.convert_ids_to_tokens(whole(text)["input_ids"]) for text in TEXTS]
        whole._tokenizer = with_tokens(whole.backend_tokenizer, kept)
        whole.save_pretrained(str(tmp_path))
        read = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
        assert type(read).__name__ == name
        assert [read.convert_ids_to_tokens(read(text)["input_ids"]) for text in TEXTS] == before
        assert [read(text)["input_ids"] for text in OTHERS] == [whole(text)["input_ids"] for text in OTHERS]


class TestCounts:
    def test_are_numbers_of_texts(self):
        tokenizer = wordpiece()
        counts = count_texts(tokenizer, ["star star", "star", "violin"])
        assert counts[tokenizer.token_to_id("star")] == 2
        assert counts[tokenizer.token_to_id("[CLS]")] == 0

    def test_are_of_texts_after_each_prompt(self):
        tokenizer = bytes_bpe()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        plain, both = (count_texts(tokenizer, ["star"], prompts) for prompts in ([""], ["", "what "]))
        assert set(np.flatnonzero(plain)) < set(np.flatnonzero(both))
        assert both.max() == 1

    def test_are_of_whole_texts(self):
        tokenizer = wordpiece()
        tokenizer.enable_truncation(2)
        assert count_texts(tokenizer, ["star star star star violin"])[tokenizer.token_to_id("violin")] == 1
        assert tokenizer.truncation["max_length"] == 2


class TestKeptTokens:
    def test_a_word_with_a_character_that_is_not_there_alone_stays(self):
        vocabulary = {token: place for place, token in enumerate(["[UNK]", "a", "##a", "aa", "aé", "é", "éa"])}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        kept = {tokenizer.id_to_token(number) for number in kept_tokens(tokenizer, [])}
        assert kept == {"[UNK]", "a", "##a", "aé", "é"}

    def test_merges_on_the_way_to_a_used_token_stay(self):
        vocabulary = {token: place for place, token in enumerate(["a", "b", "c", "ab", "bc", "abc", "cc"])}
        merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("c", "c")]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        kept = kept_tokens(tokenizer, [vocabulary["abc"]])
        assert {tokenizer.id_to_token(number) for number in kept} == {"a", "b", "c", "ab", "abc"}
        small = with_tokens(tokenizer, kept)
        assert json.loads(small.to_str())["model"]["merges"] == [["a", "b"], ["ab", "c"]]

    def test_words_alone_have_no_pieces(self):
        with pytest.raises(UserError, match="WordLevel"):
            kept_tokens(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), [0])
