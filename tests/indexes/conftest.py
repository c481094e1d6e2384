import faiss
import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny trainings spend their time waiting for each other's threads where the cores are busy."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)
