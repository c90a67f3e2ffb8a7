"""Build the documentation as a site: `make docs-site`, or `python docs/build_site.py [FOLDER]`.

The pages are those of docs/, a page for each component in place of the long catalogue, and the
changelog. The build is strict: a link or an anchor that leads nowhere ends it with 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from vlkd_cli.recipe.reference_pages import component_pages, index_page

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "site_pages"


def main() -> int:
    write_pages(PAGES)
    return build(PAGES, Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").resolve())


def build(pages: Path, folder: Path) -> int:
    """Build the site from its pages; 0, or 1 where something is wrong with them."""
    settings = pages.parent / f"{pages.name}.yml"
    settings.write_text(yaml.safe_dump(configuration(pages), sort_keys=False), encoding="utf-8")
    # Never quietly: with -q broken links end with 0.
    words = ["-m", "mkdocs", "build", "--strict", "-f", str(settings), "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run([sys.executable, *words], check=False, env=environment).returncode


def write_pages(folder: Path) -> None:
    """Every page of the site as Markdown."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "snippets"))
    (folder / "mkdocs.yml").unlink()
    shutil.copyfile(ROOT / "LICENSE", folder / "license.md")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    (folder / "changes.md").write_text(changes, encoding="utf-8")
    (folder / "catalogue.md").write_text(index_page(), encoding="utf-8")
    for name, text in component_pages(measured(), mathml).items():
        path = folder / "reference" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def configuration(folder: Path) -> dict[str, Any]:
    """docs/mkdocs.yml with the components' pages in its navigation."""
    text = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    reference: list[Any] = ["catalogue.md"]
    for kind in sorted(path for path in (folder / "reference").iterdir()):
        pages = sorted(kind.glob("*.md"))
        listed = [{page.stem: page.relative_to(folder).as_posix()} for page in pages]
        reference.append({f"{kind.name.capitalize()}s": listed})
    listed_pages = {page for section in settings["nav"] for own in section.values() for page in own}
    others = sorted({page.name for page in folder.glob("*.md")} - listed_pages)
    for section in settings["nav"]:
        if "Reference" in section:
            section["Reference"] = reference
        if "Inside" in section:  # a page that nobody has put anywhere is still found
            section["Inside"] += others
    # Relative to the file of settings, as Zensical needs it.
    return {**settings, "docs_dir": folder.name}


def measured() -> dict[str, str]:
    """How each objective fared: its rows of the tables in docs/objectives.md, under their heads."""
    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, rule, *rows = table.splitlines()
        for row in rows:
            name = re.match(r"\| `(\w+)` \|", row)
            if name is not None and "---:" in rule:
                found.setdefault(name[1], []).append("\n".join([head, rule, row]))
    source = "\n\nMeasured as [the page on objectives](../../objectives.md#measured) says."
    return {name: "\n\n".join(tables) + source for name, tables in found.items()}


def mathml(tex: str) -> str:
    """TeX as MathML, which browsers render without a script."""
    from latex2mathml.converter import convert

    return f'<div class="formula">{convert(tex, display="block")}</div>'


if __name__ == "__main__":
    sys.exit(main())
