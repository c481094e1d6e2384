"""Sentences of a text, in any script."""

from __future__ import annotations

import re
from collections.abc import Iterator

from retrodistill.data.languages import has_words

# Marks of Chinese and Japanese, Arabic and Urdu, Hindi, Armenian, Ethiopic, Burmese, and Khmer. They have no other use.
_MARKS = "。｡！？؟۔।॥։።፧။។"
_THAI = r"[\u0e00-\u0eff]"  # and Lao: without marks, and with spaces between clauses
# The end of a sentence: punctuation, closing quotes or brackets, and then whitespace, which only some scripts need.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)")
_END_IN_ANY_SCRIPT = re.compile(rf"{_END.pattern}|[{_MARKS}]+[\"'”’)\]」』）】》〉]*|(?<={_THAI}) (?={_THAI})")
_NEEDS_ANY_SCRIPT = re.compile(rf"[{_MARKS}]|{_THAI}")  # the pattern above takes twice the time
_CLAUSES = 40  # characters from which a space ends a piece of Thai text; a guess, half of a sentence
_PARAGRAPH = re.compile(r"\n\s*\n")
_OPENING = "\"'“‘([{"
# Abbreviations that hardly ever end a sentence. After others (etc., Inc.) the case of the next letter decides.
_ABBREVIATIONS = re.compile(
    r"(?i:e\.g|i\.e|cf|vs|al|figs?|eqs?|refs?|vols?|pp|ch|sect?|tab|approx|ca|dept|dr|mr|mrs|ms|prof|st|viz|eds?|"
    r"jan|feb|apr|jun|jul|aug|sept?|oct|nov|dec)|"
    r"z|bzw|Nr|Mio|Mrd|sog|ggf|evtl|inkl|vgl|Hrsg|Jh|Mme|Mlle|Sra|Dra|núm|pág|тыс|млн|млрд|им|ул|рис|см"
)
# After a day, as in the German "am 3. Oktober".
_MONTH = re.compile(r"Januar\b|Februar\b|März|April|Mai\b|Juni\b|Juli\b|August|September|Oktober|November|Dezember")


def sentences(text: str, minimum_words: int = 3) -> list[str]:
    """Split a text into sentences, in any script.

    A period, exclamation or question mark followed by whitespace ends a sentence, unless it follows an abbreviation or
    an initial, or a lower-case letter comes next. In tokenized text (``a wing . the flow``), case does not matter.
    Marks such as ``。``, ``؟``, and the danda always end one, and so does an empty line. Thai and Lao have no marks:
    a space between two letters ends a piece of 40 characters or more. Whitespace is collapsed, and sentences below
    `minimum_words` are left out, where two characters of a script without spaces count as a word.
    """
    pieces = (piece for paragraph in _PARAGRAPH.split(text) for piece in _pieces(paragraph))
    return [piece for piece in pieces if has_words(piece, minimum_words)]


def _pieces(paragraph: str) -> Iterator[str]:
    text = " ".join(paragraph.split())
    start = 0
    ends = _END_IN_ANY_SCRIPT if _NEEDS_ANY_SCRIPT.search(text) else _END
    for mark in ends.finditer(text):
        if _ends(text[start : mark.start()], mark[0][0], text[mark.end() : mark.end() + 12].lstrip()):
            yield text[start : mark.end()].strip()
            start = mark.end()
    if text[start:].strip():
        yield text[start:].strip()


def _ends(before: str, mark: str, following: str) -> bool:
    """Whether a mark, or a space in Thai, ends the sentence `before` it, given what follows."""
    if mark == " ":
        return len(before) >= _CLAUSES
    if mark in _MARKS:
        return True
    apart = before.endswith(" ")
    last = (before.rsplit(maxsplit=1) or [""])[-1].lstrip(_OPENING)
    first = following[:2].lstrip(_OPENING)[:1]
    if mark == ".":
        is_initial = len(last) == 1 and last.isalpha() and (last.isupper() or apart)
        is_number = last.lower() in {"no", "nos"} and first.isdigit()
        is_date = last.isdigit() and len(last) <= 2 and _MONTH.match(following)
        is_shortened = _ABBREVIATIONS.fullmatch(last) or re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]", last)
        if is_initial or is_number or is_date or is_shortened:
            return False
    return apart or not first.islower()
