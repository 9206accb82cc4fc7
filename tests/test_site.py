"""The documentation's site: what its navigation lists, and links that leave ``docs/``. `make docs` builds it."""

import runpy

import pytest
import yaml

from tests.imports import ORDER, ROOT

HOOKS = runpy.run_path(str(ROOT / "docs/hooks.py"))
LISTED = HOOKS["_listed"](yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
SINGLE = {"moved", "names", "mistakes", "devices", "terminal", "studio"}
"""Modules that only serve the others."""


def test_every_page_and_every_room_is_listed_once():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    rooms = {f"composer.{room}" for room in set(ORDER) - SINGLE} | {"composer", "decomposers", "conditions"}
    assert len(LISTED) == len(set(LISTED))
    assert set(LISTED) == pages | set(HOOKS["PAGES"].values()) | {f"reference/{room}.md" for room in rooms}
    assert all((ROOT / source).is_file() for source in HOOKS["PAGES"])


@pytest.mark.parametrize(
    ("source", "text", "wanted"),
    [
        ("README.md", "[tasks](docs/tasks.md#priors)", "[tasks](tasks.md#priors)"),
        ("README.md", "![a](docs/pictures/edited.png)", "![a](pictures/edited.png)"),
        ("docs/security.md", "[SECURITY.md](../SECURITY.md)", "[SECURITY.md](reporting.md)"),
        ("docs/gallery/README.md", "[tasks](../tasks.md)", "[tasks](../tasks.md)"),
        ("docs/gallery/README.md", "[recombine.py](../../examples/recombine.py)", "`examples/recombine.py`"),
        ("README.md", "[a card](LICENSE)", "a card (`LICENSE`)"),
        ("README.md", "[card](composer/assets/scenes256/README.md)", "[card](models/scenes256.md)"),
        (
            "composer/assets/scenes_prior_ar/README.md",
            "[other](../scenes_prior_diffusion/README.md)",
            "[other](scenes_prior_diffusion.md)",
        ),
        ("README.md", "[paper](https://arxiv.org/abs/2302.09778)", "[paper](https://arxiv.org/abs/2302.09778)"),
        ("README.md", "[gone](docs/gone.md)", "[gone](docs/gone.md)"),  # left for MkDocs to report
    ],
)
def test_links_hold_on_the_site(source, text, wanted):
    assert HOOKS["relink"](f"see {text}.", source) == f"see {wanted}."


def test_a_reference_page_names_what_a_room_hands_on():
    page = HOOKS["reference"]("composer.cascade")
    assert page.startswith("# composer.cascade\n") and "::: composer.cascade\n" in page
    assert '<autoref identifier="composer.cascade.cascade.Cascade" optional>Cascade</autoref>' in page
    stub = (ROOT / "composer/cascade/__init__.pyi").read_text()
    assert page.count("<autoref") == stub.count(" as ")
