"""README and docs: the code runs, the commands are real, the recipe snippets are valid, and no link is broken.

Each page's Python and ``retrodistill`` commands run in their order, in one folder and one namespace, on the tiny
collection and models: ``my-folder``, ``all-MiniLM-L6-v2`` and the like are folders there, as a reader's would be.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import yaml
from api_server import serving
from children import Child

from retrodistill import cli
from retrodistill.encoders.embeddings_api import EmbeddingsApi
from retrodistill.rankers.llm import LlmApi
from retrodistill.rankers.rerank_api import RerankApi
from retrodistill.recipes import Recipe, load_recipe, parse_recipe

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "configs/*.md", "examples/*.md", "evaluation/**/README.md")
    for path in sorted(ROOT.glob(pattern))
]
BLOCK = re.compile(r"(?:^<!-- (?P<mark>parsed only).*? -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"\n\n    (?:retrodistill|import|from|make|pip|python) ")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STAGE = {"objectives": "leaf"}
FRAMEWORKS = ("langchain_core", "llama_index.core", "haystack", "pyterrier", "mteb")
# Names that mean a download even where a folder has them, and the folder that takes their place.
TINY = {'"demo"': '"my-folder"', "beir/scifact": "my-folder", "beir/nfcorpus": "my-folder"}


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """(line number, language, text, whether it is only parsed) of the page's fenced blocks."""
    content = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(content):
        if not languages or match["language"] in languages:
            line = content.count("\n", 0, match.start("text")) + 1
            yield line, match["language"], match["text"], bool(match["mark"])


def commands(text):
    """The words of each command of a block; comments are dropped, continued lines joined."""
    lines = re.sub(r"(^|\s)#\s.*$", "", text.replace("\\\n", " "), flags=re.M).splitlines()
    return [words for line in lines if (words := shlex.split(line))]


def parse(arguments):
    """Check the arguments of a ``retrodistill`` command; a recipe and its overrides are read."""
    group = typer.main.get_command(cli.app)
    while arguments[0].startswith("--"):  # options before the command
        arguments = arguments[2:]
    assert arguments[0] in group.commands, f"no command {arguments[0]}"
    context = group.commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))
    if arguments[0] == "run":
        load_recipe(context.params["recipe"], context.params["overrides"] or [])


def run(arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert not end.value.code, f"retrodistill {shlex.join(arguments)} failed"


def whole(content):
    """A recipe around a part of one: a stage, a student, an index, or keys of the recipe."""
    if "objectives" in content:
        content = {"model": "dense:m", "stages": [content]}
    if "stages" in content:
        content = {"students": {"student": content}}
    if content.keys() & {"learn", "factory", "bytes"}:
        return {"name": "x", "index": content}
    return {"name": "x", "students": {"student": {"model": "static", "stages": [STAGE]}}, **content}


@pytest.fixture
def workplace(tmp_path, tiny_folder, tiny_model, tiny_cross_encoder, monkeypatch):
    """A folder with what the pages speak of, and the API that they name on this machine."""
    with serving() as server:
        api = {"url": f"{server.url}/rerank", "request_price": 2.0}
        (tmp_path / "cohere.yaml").write_text(yaml.safe_dump(api))
        yield _filled(tmp_path, tiny_folder, tiny_model, tiny_cross_encoder, monkeypatch)


def _filled(tmp_path, tiny_folder, tiny_model, tiny_cross_encoder, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "my-folder")
    (tmp_path / "cross-encoder").mkdir()
    for name, place in {
        "all-MiniLM-L6-v2": tiny_model,
        "cross-encoder/ms-marco-MiniLM-L6-v2": tiny_cross_encoder,
        "configs": ROOT / "configs",
        "examples": ROOT / "examples",
        "evaluation": ROOT / "evaluation",
    }.items():
        (tmp_path / name).symlink_to(place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestCode:
    @pytest.mark.slow
    @pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python", "bash"))], ids=name_of)
    def test_python_and_commands_of_a_page_run(self, page, workplace):
        for framework in FRAMEWORKS if page.stem == "frameworks" else ():
            pytest.importorskip(framework)
        names = {"__name__": "__main__"}
        for line, language, original, parsed_only in blocks(page, "python", "bash"):
            text = original
            for given, tiny in TINY.items():
                text = text.replace(given, tiny)
            where = f"{name_of(page)}, line {line}"
            if language == "python":
                exec(compile("\n" * line + text, where, "exec"), names)
                continue
            for program, *arguments in commands(text):
                if program == "retrodistill":
                    parse(arguments)
                    if not parsed_only:
                        run(arguments)
                else:
                    self.check(program, arguments, where)

    def check(self, program, arguments, where):
        """Commands that are not ours: what they name is there."""
        if program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert arguments[0] in targets, where
        elif program == "pip":
            assert arguments[0] == "install", where
        elif program == "python":
            assert (ROOT / arguments[0]).exists(), where
        elif program.startswith(".venv/bin/"):
            tools = {"python", "ruff", "mypy"}
            assert program.removeprefix(".venv/bin/") in tools, where
        elif program == "torchrun":
            parse(arguments[arguments.index("retrodistill") + 1 :])
        else:
            pytest.fail(f"{where}: {program} is not a command that the pages may use")

    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_every_block_has_a_language_and_none_is_only_indented(self, page):
        languages = {language for _, language, _, _ in blocks(page)}
        assert languages <= {"python", "bash", "yaml", "json", "text"}
        assert not INDENTED.search(page.read_text(encoding="utf-8"))

    @pytest.mark.parametrize("page", [path for path in PAGES if "evaluation" not in path.parts], ids=name_of)
    def test_code_fits_the_width_of_a_page(self, page):
        assert [line for _, _, text, _ in blocks(page) for line in text.splitlines() if len(line) > 80] == []

    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_files_that_a_page_names_exist(self, page):
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`((?:retrodistill|configs|tests|evaluation|examples|docs)/[\w/.-]*)`", text)
        assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []

    def test_extras_exist(self):
        import tomllib

        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = {name for page in PAGES for name in re.findall(r"'retrodistill\[([\w-]+)\]'", page.read_text())}
        assert named
        assert named <= extras.keys()


class TestRecipes:
    @pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "yaml", "json"))], ids=name_of)
    def test_snippets_are_valid_parts_of_a_recipe(self, page, workplace):
        for line, language, text, _ in blocks(page, "yaml", "json"):
            content = None if language == "json" else yaml.safe_load(text)
            if language == "json":
                json.loads(text)
            elif "url" in content:
                kind = LlmApi if "judge" in content else EmbeddingsApi if "dimension" in content else RerankApi
                kind.model_validate(content)
            else:
                try:
                    recipe = parse_recipe(whole(content))
                except Exception as error:
                    raise AssertionError(f"{name_of(page)}, line {line}: {error}") from error
                assert isinstance(recipe, Recipe)

    def test_every_recipe_has_a_row(self):
        page = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| \[`([\w-]+)`\]", page, re.MULTILINE)
        assert sorted(rows) == sorted(path.stem for path in CONFIGS)

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
    def test_the_commands_of_a_recipe_s_head_are_valid(self, path):
        head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
        said = re.findall(r"^#\s+(retrodistill run .*?)$", head, re.M)
        assert said
        for command in said:
            words = shlex.split(command)
            assert words[2] == path.stem
            parse(words[1:])


@pytest.mark.xdist_group("children")
class TestSite:
    def test_it_builds_without_a_warning_and_with_no_broken_link(self, tmp_path):
        pytest.importorskip("mkdocs", reason="the docs extra is not installed")
        code = "import os, sys; from mkdocs.__main__ import cli; os.chdir(sys.argv.pop(1)); cli(sys.argv[1:])"
        settings = {"PATH": "", "HOME": str(tmp_path), "NO_MKDOCS_2_WARNING": "1"}
        child = Child(code, ROOT, "build", "--strict", "--site-dir", tmp_path / "site", environment=settings)
        status, _, said = child.wait()
        assert status == 0, said[-3000:]
        keys = (tmp_path / "site" / "reference" / "recipe-keys" / "index.html").read_text(encoding="utf-8")
        assert "learning_rate" in keys
