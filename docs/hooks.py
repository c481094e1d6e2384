"""Build hooks of mkdocs: pages that live outside docs/, links between them, and the generated references.

The README is the home page. Recipes, examples and measurements keep their place in the repository. Links are written as
GitHub reads them, relative to the file, and translated here to the site's addresses.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "CITATION.cff", "configs/*", "examples/*",
    "evaluation/**/*.md", "evaluation/**/*.py", "evaluation/**/*.png", "evaluation/**/*.json", "evaluation/**/*.yaml",
)  # fmt: skip
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
GENERATED = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)


def address(place: str) -> str:
    """The site's path of a file, from its path in the repository."""
    return "index.md" if place == "README.md" else place.removeprefix("docs/")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and files that live outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, address(place), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Translate links to the site's addresses and put the generated references in."""
    place = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    fences = [match.span() for match in FENCE.finditer(markdown)]

    def translated(link: re.Match[str]) -> str:
        if any(start <= link.start() < end for start, end in fences):
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link[0]))
        return posixpath.relpath(address(target), posixpath.dirname(page.file.src_uri) or ".")

    return GENERATED.sub(lambda match: WRITERS[match[1]](), LINK.sub(translated, markdown))


def recipe_keys() -> str:
    """Every key of a recipe: a section for each group of settings, a line for each key."""
    from retrodistill.cli.recipes import default_text
    from retrodistill.recipes.keys import recipe_keys as sections

    lines: list[str] = []
    places: dict[Any, str] = {}
    for section in sections():
        place = ".".join(section.path) or "recipe"
        if section.settings in places:
            if not any(place.startswith(f"{seen}.") for seen in places.values() if seen != "recipe"):
                lines += ["", f"## `{place}`", "", f"The keys of `{places[section.settings]}`."]
            continue
        places[section.settings] = place
        lines += ["", f"## `{place}`", "", section.about.replace("``", "`"), ""]
        for key in section.keys:
            default = (
                ", required" if key.needed else "" if "settings" in key.values else f", default `{default_text(key)}`"
            )
            lines += [f"- **`{key.path[-1]}`**: {key.values}{default}  ", f"    {key.meaning}"]
    return "\n".join(lines)


def methods() -> str:
    """What `retrodistill methods` prints, as lists."""
    from retrodistill import cli

    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        cli.main(["methods"])
    lines: list[str] = []
    for line in printed.getvalue().splitlines():
        if line.startswith("  "):
            name, _, meaning = line.strip().partition(" ")
            lines.append(f"- `{name}`: {meaning.strip()}")
        elif line:
            lines += ["", f"## {line[0].upper()}{line[1:]}", ""]
    return "\n".join(lines)


def command_line() -> str:
    """Every command with its arguments and options, from typer."""
    import typer
    from typer.cli import get_docs_for_click

    from retrodistill.cli import app

    os.environ["TERMINAL_WIDTH"] = "100"
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="retrodistill"), name="retrodistill")
    text = text.partition("\n")[2]  # the page has a heading of its own
    return re.sub(r"\*\*Commands\*\*:.*?(?=^## )", "", text, count=1, flags=re.MULTILINE | re.DOTALL)  # they follow


WRITERS = {"recipe-keys": recipe_keys, "methods": methods, "command-line": command_line}
