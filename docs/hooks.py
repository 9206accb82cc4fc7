"""Hooks of the documentation's site (`make docs`): pages from outside ``docs/``, the reference, links between them."""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODELS = ("scenes256", "scenes_prior_diffusion", "scenes_prior_ar")
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "composer/assets/PHOTOGRAPHS.md": "models/photographs.md",
    **{f"composer/assets/{name}/README.md": f"models/{name}.md" for name in MODELS},
}
"""File of the repository -> page of the site; all else that lies in ``docs/`` keeps its path."""

LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def reference(module: str) -> str:
    """A page that shows a module: the names that it hands on from others, then all that its files define."""
    stub = ROOT / module.replace(".", "/") / "__init__.pyi"
    lines = [f"# {module}", ""]
    if stub.exists():
        imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
        names = {alias.name: f"{module}.{node.module}.{alias.name}" for node in imports for alias in node.names}
        links = [f'<autoref identifier="{place}" optional>{name}</autoref>' for name, place in sorted(names.items())]
        lines += [f"`from {module} import ...` gives " + ", ".join(links) + ".", ""]
    submodules = str(module != "composer").lower()  # those have pages of their own
    return "\n".join([*lines, f"::: {module}", "    options:", f"      show_submodules: {submodules}", ""])


def relink(text: str, source: str) -> str:
    """Rewrites the links of a file of the repository so that they hold on the site.

    Args:
        text: Markdown.
        source: The file's path from the root of the repository.

    Returns:
        The same with links to pages of the site; what the site lacks is named by its path in the repository.
    """
    here = posixpath.dirname(_page(source))

    def rewrite(link: re.Match[str]) -> str:
        label, target, anchor = link[1], link[2], link[3] or ""
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if "://" in target or not (ROOT / wanted).exists():
            return link[0]  # not ours, or a mistake, which MkDocs will report
        if wanted in PAGES or wanted.startswith("docs/"):
            return f"[{label}]({posixpath.relpath(_page(wanted), here or '.')}{anchor})"
        return f"`{wanted}`" if label in wanted else f"{label} (`{wanted}`)"

    return LINK.sub(rewrite, text)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that do not lie in ``docs/``."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page in _listed(config["nav"]):
        if page.startswith("reference/"):
            module = page.removeprefix("reference/").removesuffix(".md")
            files.append(File.generated(config, page, content=reference(module)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites a page's links."""
    sources = {name: source for source, name in PAGES.items()}
    return relink(markdown, sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))


def _page(source: str) -> str:
    return PAGES.get(source, source.removeprefix("docs/"))


def _listed(nav: Any) -> list[str]:
    """All pages that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in _listed(part)]
