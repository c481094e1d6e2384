import pytest

from retrodistill.core.published import holds_key, published_value, without_local_folders


class TestPaths:
    @pytest.mark.parametrize(
        ("text", "published"),
        [
            ("dense:/home/me/my models/base", "dense:base"),
            ("content of dense:/home/me/base", "content of dense:base"),
            ("static:../../students/small", "static:small"),
            ("~/models/base", "base"),
            (r"C:\Users\me\base", "base"),
            ("run /home/me/a.yaml --out /home/me/out", "run a.yaml --out out"),
            ("as in (/home/me/a.yaml)", "as in (a.yaml)"),
        ],
    )
    def test_a_local_path_keeps_its_last_part(self, text, published):
        assert published_value(text) == published

    @pytest.mark.parametrize(
        "text",
        ["https://host.org/a/b", "dense:org/name", "BeIR/scifact", "and/or", "0.1 / 0.2", "hf:a/b", "/", ""],
    )
    def test_other_texts_stay(self, text):
        assert published_value(text) == without_local_folders(text) == text

    def test_keys_and_lists_of_json_values(self):
        assert published_value({"content of dense:/a/b": ["/a/b/c", 1, None]}) == {"content of dense:b": ["c", 1, None]}

    def test_a_code_span_may_have_spaces(self):
        assert without_local_folders("`dense:/my models/a b`, by https://host.org/a/b") == (
            "`dense:a b`, by https://host.org/a/b"
        )


class TestKeys:
    def test_forms_of_keys(self):
        assert holds_key("token: hf_abcdefghijklmnopqrstuvwx")
        assert holds_key("sk-proj-abcdefghijklmnop0123")
        assert not holds_key("task-specific, half_precision, disk-based")
