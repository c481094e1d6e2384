import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders.names import KINDS, ModelName, parse_model_name


class TestParsing:
    @pytest.mark.parametrize("text", ["bm25", "dense:all-MiniLM-L6-v2", "run:a/b.run", "static:C:\\models\\x"])
    def test_a_name_reads_back_as_it_was_written(self, text):
        assert str(parse_model_name(text)) == text

    def test_only_the_first_colon_parts_kind_and_name(self):
        assert parse_model_name("dense:org/name:v2") == ModelName("dense", "org/name:v2")

    def test_every_kind_has_its_line(self):
        assert all(line and "\n" not in line for line in KINDS.values())


class TestMistakes:
    def test_an_unknown_kind_is_answered_with_the_nearest(self):
        with pytest.raises(UserError, match=r"unknown model kind 'dens'. Did you mean 'dense'\? Known: bm25, "):
            parse_model_name("dens:x")

    def test_a_bare_name_is_told_how_names_are_written(self):
        with pytest.raises(UserError, match=r"A model is named kind:name, e.g. 'dense:all-MiniLM-L6-v2'"):
            parse_model_name("all-MiniLM-L6-v2")

    @pytest.mark.parametrize("text", ["dense", "dense:", "run:", "cross-encoder"])
    def test_a_kind_without_its_name(self, text):
        with pytest.raises(UserError, match=rf"^model {text!r} has no name; write '{text.rstrip(':')}:NAME', "):
            parse_model_name(text)

    def test_bm25_needs_no_name_and_may_have_a_setting(self):
        assert [str(parse_model_name(name)) for name in ("bm25", "bm25:german")] == ["bm25", "bm25:german"]
