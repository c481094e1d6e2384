import pytest
from hub_server import TOKEN, serving


@pytest.fixture(scope="session")
def _server():
    """One server for all tests."""
    with serving() as started:
        yield started


@pytest.fixture
def hub(_server, tmp_path, monkeypatch):
    """An empty hub of this machine, which the libraries take for the hub; nothing is in their cache."""
    from huggingface_hub import constants, hf_api

    _server.clear()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, _server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", _server.url)
    monkeypatch.setattr(hf_api.api, "endpoint", _server.url)
    # transformers keeps a client with the first address that it sees, which another test may have made
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no-tokens"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return _server
