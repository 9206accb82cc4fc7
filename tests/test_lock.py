"""The lock: exact versions for every platform, within the ranges of pyproject.toml, and no word of where from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if line[0] != "#"]
ENVIRONMENTS = [
    {"python_version": python, "python_full_version": f"{python}.0", "platform_python_implementation": "CPython"}
    | {"sys_platform": system, "platform_machine": machine, "platform_system": name, "implementation_name": "cpython"}
    for python in ("3.11", "3.12", "3.13")
    for system, name, machine in (
        ("linux", "Linux", "x86_64"),
        ("linux", "Linux", "aarch64"),
        ("darwin", "Darwin", "arm64"),
    )
]


def wanted(extra=None):
    """What the project asks for, with an extra and the extras that it names."""
    for line in PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            for inner in requirement.extras:
                yield from wanted(inner)
        else:
            yield requirement


def test_every_line_is_an_exact_version():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "@" not in text and not re.search(r"^-|^#.*[/\\]", text, re.MULTILINE)
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) and not pin.extras for pin in PINS)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: "-".join(list(e.values())[i] for i in (0, 3, 4)))
def test_it_fulfils_what_the_project_asks_for(environment):
    here = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in here}
    assert len(versions) == len(here), "one version of each"
    for requirement in [*wanted(), *wanted("dev")]:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
