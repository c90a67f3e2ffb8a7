"""Markdown pages as tests see them: their code blocks, commands, links, and the one way in which
each command is tested."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = ROOT / "docs" / "snippets"

BASE = """\
towers:
  image: {builder: torchvision, model: resnet18}
  text: {builder: openclip, config: {layers: 2, width: 512, heads: 8}}
distillers:
  - {name: infonce}
data: {reader: shapes}
"""
"""What a page's fragment of a recipe is put into to be checked: its sections replace these."""


class Block(NamedTuple):
    """A fenced block: the line it opens in, its language, and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The name that a recipe's first line gives it: `# mine.yaml: ...`."""
        named = re.match(r"# ([\w.-]+\.yaml)\b", self.text)
        return named[1] if named else None


class Command(NamedTuple):
    """One command line of a page: the program, its words, and the environment variables set before
    it."""

    block: Block
    text: str
    words: list[str]
    variables: dict[str, str]

    def __str__(self) -> str:
        return f"{self.block}: {self.text}"


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    found: list[Block] = []
    inside: list[str] | None = None
    language, opened = "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            if inside is None:
                inside, language, opened = [], line.strip().removeprefix("```"), number
            else:
                found.append(Block(page, opened, language, "\n".join(inside) + "\n"))
                inside = None
        elif inside is not None:
            inside.append(line)
    assert inside is None, f"{page}: the block of line {opened} is never closed"
    return found


def commands_of(page: Path) -> list[Command]:
    """Every command of a page's bash blocks; a line that ends in a backslash continues in the
    next."""
    return [
        command
        for block in blocks_of(page)
        if block.language == "bash"
        for command in _commands(block)
    ]


def _commands(block: Block) -> Iterator[Command]:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        variables = {}
        while words and re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        redirected = [number for number, word in enumerate(words) if word in ("<", ">")]
        words = words[: redirected[0]] if redirected else words
        if words:
            yield Command(block, " ".join(line.split()), words, variables)


def inside(page: Path) -> Iterator[str]:
    """Targets of a page's links and pictures, those to other sites left out."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"(?:\]\(|src=\"|srcset=\")([^)\"\s]+)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors_of(page: Path) -> set[str]:
    """The anchors that a page's headings make."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def table_after(page: Path, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, its head and rule left out, without backticks."""
    text = page.read_text(encoding="utf-8").split(f"{heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert rows is not None, f"{page}: no table below '{heading}'"
    return [
        [cell.strip().replace("`", "") for cell in row.strip("|").split("|")]
        for row in rows[0].splitlines()[2:]
    ]
