import re

import pytest

from retrodistill.report.text import source

STYLE, SCRIPT = source("colors.css") + source("page.css"), source("page.js")

SCHEMES = [dict(re.findall(r"--(\w+): (#[0-9a-f]+)", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)]


def luminance(color):
    """Relative, by WCAG 2.2."""
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


class TestContrast:
    @pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark", "print"])
    def test_words_and_marks_stand_out(self, scheme):
        for ground in ("paper", "tint"):
            for word in ("ink", "soft", "good"):
                assert contrast(scheme[word], scheme[ground]) >= 4.5, (word, ground)
        for mark in ("student", "teacher", "control", "baseline"):
            assert contrast(scheme[mark], scheme["paper"]) >= 3, mark
        assert contrast(scheme["ink"], scheme["mark"]) >= 4.5
        assert contrast(scheme["student"], scheme["paper"]) >= 4.5  # links


def test_neither_asks_for_anything():
    assert not re.search(r"url\(|@import|fetch|XMLHttp|import\(|eval|innerHTML", STYLE + SCRIPT)
