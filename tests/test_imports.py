import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import retrodistill

PACKAGE = Path(retrodistill.__file__).parent
BASE = ["core"]
LINE = [
    "data", "runs", "objectives", "encoders", "rankers", "candidates", "generation", "training", "students",
    "quantizers", "indexes", "exports", "evaluation", "report", "recipes", "publishing", "serving",
    "integrations", "api", "cli",
]  # fmt: skip
TOP = ["__init__", "__main__"]


def stage(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_stages(path):
    """First part below `retrodistill` of every import in a file, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = [node.module]
            if node.module == "retrodistill":
                modules = [f"retrodistill.{alias.name}" for alias in node.names]
        found |= {module.split(".")[1] for module in modules if module.startswith("retrodistill.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


class TestLine:
    def test_every_module_has_its_place(self):
        assert {stage(path) for path in FILES} == {*BASE, *LINE, *TOP}

    @pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
    def test_imports_point_backwards(self, path):
        own = stage(path)
        allowed = set(BASE)
        if own in LINE:
            allowed |= set(LINE[: LINE.index(own) + 1])
        if own in TOP:
            allowed |= set(LINE)
        assert imported_stages(path) - {"__version__"} <= allowed


def needs(path):
    """Files of the package that a file imports, in functions too; those for type checkers alone do not count."""
    found = set()
    nodes = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            places = [PACKAGE.parent.joinpath(*node.module.split("."), alias.name) for alias in node.names]
            places = [place if place.with_suffix(".py").exists() else place.parent for place in places]
        elif isinstance(node, ast.Import):
            places = [PACKAGE.parent.joinpath(*alias.name.split(".")) for alias in node.names]
        else:
            continue
        files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
        found |= {file for file in files if file in FILES and file != path}
    return found


class TestCycles:
    def test_no_file_imports_itself_through_others(self):
        open_files = {path: needs(path) for path in FILES}
        while ready := {path for path, others in open_files.items() if not others & open_files.keys()}:
            open_files = {path: others for path, others in open_files.items() if path not in ready}
        assert sorted(str(path.relative_to(PACKAGE)) for path in open_files) == []


class TestFaiss:
    def test_it_is_imported_where_it_is_set_up(self):
        assert [path for path in FILES if re.search(r"^\s*(import|from) faiss\b", path.read_text(), re.MULTILINE)] == []

    def test_it_multiplies_matrices_for_a_few_queries(self):
        code = (
            "from retrodistill.core.faiss import faiss; "
            "print(faiss.cvar.distance_compute_blas_threshold, faiss.cvar.distance_compute_blas_database_bs)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["6144", "16384"]


class TestPublicNames:
    def test_there_are_at_most_18_and_all_resolve(self):
        assert len(retrodistill.__all__) <= 18
        assert sorted(retrodistill.__all__) == dir(retrodistill)
        for name in retrodistill.__all__:
            assert getattr(retrodistill, name) is not None

    @pytest.mark.parametrize("folder", [name for name in LINE if (PACKAGE / name).is_dir()])
    def test_those_of_every_folder_resolve(self, folder):
        module = importlib.import_module(f"retrodistill.{folder}")
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name)

    def test_another_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            retrodistill.nonsense  # noqa: B018


class TestInstantImport:
    @pytest.mark.parametrize("module", ["retrodistill", "retrodistill.cli"])
    def test_loads_no_heavy_library(self, module):
        code = (
            f"import sys, {module}; "
            "heavy = {'torch', 'sentence_transformers', 'faiss', 'transformers', 'datasets', 'bm25s', 'fastapi'}; "
            "print(*sorted(heavy & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == []
