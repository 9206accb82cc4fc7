"""Who may import whom, read from the sources, and that importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import composer

ROOT = Path(__file__).parents[1]
PACKAGES = ("composer", "decomposers", "conditions")
SOURCES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
LIGHTNING = ("callbacks", "cli", "clip_training", "data", "progress", "reader_training", "sample_grid", "training")
LIGHTNING += ("things_training",)
SHOWING = ("doctor_tables", "evaluating", "writing")
HEAVY = {"cv2", "diffusers", "huggingface_hub", "jsonargparse", "kornia", "lightning", "matplotlib", "omegaconf"}
HEAVY |= {"open_clip", "rich", "scipy", "skimage", "tensorboard", "timm", "torch_fidelity", "torchmetrics"}
HEAVY |= {"torchvision", "transformers", "ultralytics"}


def imports(node, package):
    """Absolute names of the modules that a tree imports."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parent = package[: len(package) - child.level + 1] if child.level else ()
            yield ".".join([*parent, *([child.module] if child.module else [])])


def read(path):
    """A file's imports: all of them, and those that importing it runs."""
    tree, package = ast.parse((ROOT / path).read_text()), path.parent.parts
    lazy = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy += [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    whole = list(imports(tree, package))
    for node in lazy:
        node.body = []
    return whole, list(imports(tree, package))


def top(names):
    return {name.partition(".")[0] for name in names}


def test_the_reading_of_imports_sees_what_it_should():
    tree = ast.parse(
        "from .. import a\nfrom ..b import c\nfrom . import d\nimport e.f\ndef g():\n    import h\n"
        "if TYPE_CHECKING:\n    import i\nclass J:\n    def k(self):\n        from l import m\n"
    )
    found = list(imports(tree, ("composer", "deep")))
    assert found == ["composer", "composer.b", "composer.deep", "e.f", "h", "i", "l"]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_packages_import_only_what_they_may(path):
    everything, at_once = read(path)
    package, found = path.parts[0], top(everything)
    if package == "composer":
        assert not found & {"decomposers", "conditions"}, "the core knows no concrete decomposer or condition"
    if package == "decomposers":
        assert "conditions" not in found
    if package == "conditions":
        assert "decomposers" not in found
    if "ultralytics" in found:
        assert path == Path("decomposers/yolo.py"), "under the AGPL-3.0: one file, which says so"
    if "lightning" in found:
        assert package == "composer" and path.stem in LIGHTNING
    assert "__future__" not in found, "jaxtyping has to see the annotations themselves"
    if package != "composer" or path.stem not in LIGHTNING:  # those are loaded by a training alone
        bars = {"rich"} if path.stem in SHOWING else set()
        assert not top(at_once) & HEAVY - bars, "import it where it is used"


def test_importing_the_packages_is_light():
    """By what is loaded, not by the clock: about 0.05 s of processor time beyond `import torch`."""
    probe = (
        "import sys, torch; before = set(sys.modules)\n"
        "def show(): print(*{name.partition('.')[0] for name in set(sys.modules) - before})\n"
        "import composer; show(); import conditions, decomposers; show()"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    core, all_three = (set(line.split()) for line in done.stdout.splitlines())
    assert "composer" in core and not core & HEAVY
    assert set(PACKAGES) <= all_three and not all_three & HEAVY - {"rich"}


def test_every_public_name_is_there_and_none_is_a_module():
    assert sorted(set(composer.__all__)) == composer.__all__
    for name in composer.__all__:
        assert not isinstance(getattr(composer, name), type(sys)), f"{name} is hidden by the module of its name"
