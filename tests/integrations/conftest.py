import socket

import pytest
from topics import FIVE_DOCUMENTS

from retrodistill.core.manifest import Manifest
from retrodistill.data import Collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.contract import searched_space
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.indexes import build_index
from retrodistill.students import save_student

FIELDS = {
    "a": {"year": 2019, "lang": "en", "day": "2019-03-01"},
    "b": {"year": 2020, "lang": "de", "day": "2020-03-01"},
    "c": {"year": 2021, "lang": "en", "score": 7},
    "d": {"year": 2022, "lang": "fr"},
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Neither the frameworks nor our modules ask for the address of a host, which some would not say if it fails."""
    asked = []

    def refuse(host, *_, **__):
        asked.append(host)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert asked == []


@pytest.fixture(scope="session")
def small():
    """Five documents with fields."""
    return Collection.from_parts("small", FIVE_DOCUMENTS, {}, {}, FIELDS)


@pytest.fixture(scope="session")
def teacher(tiny_model):
    """Name of the encoder of the documents."""
    return f"dense:{tiny_model}"


@pytest.fixture(scope="session")
def student(teacher, tiny_static, tmp_path_factory):
    """Name of a token table whose queries search the teacher's documents."""
    folder = tmp_path_factory.mktemp("students") / "student"
    save_student(load_bi_encoder(tiny_static), Manifest("student", about=searched_space(load_encoder(teacher))), folder)
    return f"static:{folder}"


@pytest.fixture(scope="session")
def folder(small, teacher, student, tmp_path_factory):
    """An index with the student's queries, the teacher's documents, and their texts."""
    folder = tmp_path_factory.mktemp("indexes") / "index"
    build_index(small, teacher, student, store_texts=True).save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def without_texts(small, teacher, tmp_path_factory):
    """An index that stores fields only."""
    folder = tmp_path_factory.mktemp("indexes") / "bare"
    build_index(small, teacher).save(folder)
    return str(folder)
