"""Cut a fast tokenizer to the tokens that some texts use, and those that any other word needs.

Load What You Need (Abdaoui et al., arXiv 2010.05609) showed that a multilingual model needs few of its tokens for the
texts of one language. Two promises go beyond it here: a text whose tokens are all kept is read as before, and a text
that the tokenizer could read stays readable, in smaller pieces.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import bar

KINDS = ("WordPiece", "BPE", "Unigram")
_BLOCK = 1000  # texts whose tokens are in memory at once
_is_byte = re.compile(r"<0x[0-9A-Fa-f]{2}>").fullmatch


def count_texts(tokenizer: Tokenizer, texts: Sequence[str], prompts: Iterable[str] = ("",)) -> np.ndarray:
    """(ids,) int64: how many texts have each token, whole texts and without special tokens.

    With several prompts, each text is read after each of them, since a tokenizer may join what follows a prompt to it.
    """
    tokenizer = unlimited(tokenizer)
    counts = np.zeros(ids_of(tokenizer), dtype=np.int64)
    with bar(len(texts), "vocabulary", "texts") as progress:
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]
            found: list[set[int]] = [set() for _ in block]
            for prompt in prompts:
                encodings = tokenizer.encode_batch_fast([prompt + text for text in block], add_special_tokens=False)
                for tokens, encoding in zip(found, encodings, strict=True):
                    tokens.update(encoding.ids)
            for tokens in found:
                counts[list(tokens)] += 1
            progress.update(len(block))
    return counts


def unlimited(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that reads whole texts."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def ids_of(tokenizer: Tokenizer) -> int:
    """One more than the highest id of a token; ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def kept_tokens(tokenizer: Tokenizer, used: Iterable[int]) -> np.ndarray:
    """(n,) int64 ascending ids: of the used tokens, of added and special ones, and of those that other words need.

    Any word that was read can still be read, since all single characters stay, in each form that the vocabulary has of
    them (of WordPiece also ``##c``), all tokens of single bytes, and tokens with a character that is not there alone.
    Of byte-pair encoding, the tokens stay that used ones are merged from; of Unigram, the unlikeliest piece, from which
    the price of an unknown character follows.

    Raises:
        UserError: The tokenizer is of another kind, which has no pieces for words outside its vocabulary.
    """
    written = json.loads(tokenizer.to_str())
    model = written["model"]
    if model["type"] not in KINDS:
        raise UserError(
            f"a tokenizer of the kind {model['type']} has no pieces for other words, so that cutting it would make "
            f"them unreadable; trim works for {', '.join(KINDS)}."
        )
    vocabulary = _vocabulary(model)
    by_id = {number: token for token, number in vocabulary.items()}
    kept = {number for number in used if number in by_id}
    symbols_of = _symbols(model)
    for token, number in vocabulary.items():
        symbols = symbols_of(token)
        if len(symbols) == 1 or _is_byte(token) or any(symbol not in vocabulary for symbol in symbols):
            kept.add(number)
    kept |= {vocabulary[token] for token in (model.get("unk_token"),) if token in vocabulary}
    if model["type"] == "BPE":
        merged = _derivations(model, symbols_of)
        kept |= {vocabulary[part] for number in tuple(kept) for part in merged(by_id[number]) if part in vocabulary}
    if model["type"] == "Unigram":
        kept |= {int(np.argmin([score for _, score in model["vocab"]]))}
        kept |= {model["unk_id"]} if model.get("unk_id") is not None else set()
    kept |= {token["id"] for token in written["added_tokens"]}
    kept |= {one for added in _framing(written.get("post_processor")) for one in added if isinstance(one, int)}
    return np.fromiter(sorted(kept), dtype=np.int64, count=len(kept))


def with_tokens(tokenizer: Tokenizer, kept: np.ndarray) -> Tokenizer:
    """The tokenizer with these tokens only, of `kept_tokens`; the id of each is its place among them.

    Raises:
        UserError: The tokenizer numbers its tokens in a way that does not allow for it.
    """
    new = {old: place for place, old in enumerate(kept.tolist())}
    written = json.loads(tokenizer.to_str())
    model = written["model"]
    vocabulary = _vocabulary(model)
    if model["type"] == "Unigram":
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[number] for token, number in vocabulary.items() if number in new}
    if model["type"] == "BPE":
        joined = _joined(model)
        model["merges"] = [
            merge
            for merge in model["merges"]
            if all(part in model["vocab"] for part in (*_pair(merge), joined(*_pair(merge))))
        ]
    for token in written["added_tokens"]:
        token["id"] = new[token["id"]]
    if written.get("padding"):
        written["padding"]["pad_id"] = new.get(written["padding"]["pad_id"], 0)
    _renumber(written.get("post_processor"), new)
    cut = Tokenizer.from_str(json.dumps(written))
    wanted = {token: new[number] for token, number in tokenizer.get_vocab().items() if number in new}
    if cut.get_vocab() != wanted:
        raise UserError("the tokenizer numbers its added tokens among the others, so that it cannot be cut.")
    return cut


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    vocabulary: dict[str, int] = model["vocab"]
    return vocabulary


def _symbols(model: dict[str, Any]) -> Callable[[str], list[str]]:
    """What tells the single characters that a token is made of, in the form that they have at their places."""
    first, last = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""

    def symbols(token: str) -> list[str]:
        begins, ends = not (first and token.startswith(first) and token != first), bool(last) and token.endswith(last)
        letters = token[0 if begins else len(first) : len(token) - len(last) if ends else None]
        forms = [letter if begins and not place else first + letter for place, letter in enumerate(letters)]
        return [*forms[:-1], forms[-1] + last] if ends and forms else forms

    return symbols


def _derivations(model: dict[str, Any], symbols_of: Callable[[str], list[str]]) -> Callable[[str], set[str]]:
    """What tells all that is merged on the way to a token, from its single characters on, in the order of merges."""
    ranks = {_pair(merge): rank for rank, merge in enumerate(model["merges"])}
    joined = _joined(model)

    def derived(token: str) -> set[str]:
        parts = symbols_of(token)
        seen = set(parts)
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            place = min(range(len(pairs)), key=lambda at: ranks.get(pairs[at], len(ranks)))
            if pairs[place] not in ranks:
                break
            parts[place : place + 2] = [joined(*pairs[place])]
            seen.add(parts[place])
        return seen

    return derived


def _joined(model: dict[str, Any]) -> Callable[[str, str], str]:
    """What two tokens are merged to."""
    prefix = model.get("continuing_subword_prefix") or ""
    return lambda left, right: left + right.removeprefix(prefix)


def _pair(merge: Any) -> tuple[str, str]:
    """A merge in either form that files have: a list, or text with a space between."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _renumber(processor: Any, new: dict[int, int]) -> None:
    """Give the tokens that a post-processor adds their new ids, in place."""
    for numbers in _framing(processor):
        numbers[:] = [new[number] if isinstance(number, int) else number for number in numbers]


def _framing(processor: Any) -> Iterator[list[Any]]:
    """The lists of a post-processor with the ids of tokens that it adds; BERT's have the token next to its id."""
    if isinstance(processor, dict):
        special = processor.get("special_tokens")
        yield from (token["ids"] for token in special.values()) if isinstance(special, dict) else ()
        yield from (processor[end] for end in ("sep", "cls") if isinstance(processor.get(end), list))
        for part in processor.get("processors", ()):
            yield from _framing(part)
