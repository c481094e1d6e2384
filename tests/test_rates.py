import pytest

from retrodistill.core.cache import cache_folder
from retrodistill.core.rates import rate_key, remember, remembered


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRODISTILL_CACHE", str(tmp_path / "cache"))


class TestRates:
    def test_the_last_ones_of_a_key_are_found(self):
        assert remembered("a") is None
        remember("a", {"step": 1.0})
        remember("b", {"step": 2.0})
        remember("a", {"step": 3.0})
        assert remembered("a") == {"step": 3.0}
        assert remembered("b") == {"step": 2.0}

    def test_the_oldest_are_dropped(self, monkeypatch):
        monkeypatch.setattr("retrodistill.core.rates._KEPT", 2)
        for key in "abac":
            remember(key, {"step": 1.0})
        assert [key for key in "abc" if remembered(key)] == ["a", "c"]

    def test_a_damaged_file_is_none(self):
        remember("a", {"step": 1.0})
        (cache_folder() / "rates.json").write_text("{")
        assert remembered("a") is None
        remember("a", {"step": 2.0})
        assert remembered("a") == {"step": 2.0}

    def test_a_key_depends_on_threads(self, monkeypatch):
        key = rate_key("training", {"batch": 8})
        assert key == rate_key("training", {"batch": 8}) != rate_key("training", {"batch": 16})
        monkeypatch.setattr("torch.get_num_threads", lambda: 99)
        assert key != rate_key("training", {"batch": 8})
