"""Who may import whom, read from the sources, and that importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import composer
from tests.imports import ORDER, PACKAGES, ROOT, circle, floors, graph, named, read, room, sources

LIGHTNING = {
    f"composer.training.{name}" for name in ("callbacks", "clip", "cli", "configured_data", "prior", "progress")
}
LIGHTNING |= {
    f"composer.training.{name}" for name in ("reader", "safety", "sample_grid", "sharding", "stage", "things")
}
LIGHTNING |= {"composer.data.loading"}
SHOWING = {f"composer.commands.{name}" for name in ("data", "demo", "evaluating", "options")}
SHOWING |= {"composer.evaluation.counting", "composer.scenes.writing", "composer.training.doctor_tables"}
HEAVY = {"cv2", "diffusers", "huggingface_hub", "jsonargparse", "kornia", "lightning", "matplotlib", "omegaconf"}
HEAVY |= {"open_clip", "ray", "rich", "scipy", "skimage", "tensorboard", "timm", "torch_fidelity", "torchmetrics"}
HEAVY |= {"torchvision", "transformers", "ultralytics"}


def top(names):
    return {name.partition(".")[0] for name in names}


def test_the_reading_of_imports_sees_what_it_should():
    tree = ast.parse(
        "from .. import a\nfrom ..b import c\nfrom . import d\nimport e.f\ndef g():\n    import h\n"
        "if TYPE_CHECKING:\n    import i\nclass J:\n    def k(self):\n        from l import m\n"
        "import_module('n.o')\nimportlib.import_module(p)\n"
    )
    found = [module for module, _ in named(tree, ("composer", "deep"))]
    assert sorted(found) == ["composer", "composer.b", "composer.deep", "e.f", "h", "i", "l", "n.o"]


def test_circles_and_floors_are_found():
    tower = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert circle(tower) == [] and floors(tower) == 3
    assert set(circle(tower | {"c": {"a"}})) == {"a", "b", "c"}


def test_no_import_goes_up_and_none_in_a_circle():
    imports = graph()
    assert circle(imports) == []
    for module, others in imports.items():
        if module.startswith("composer.") and room(module) != "__main__":
            up = [o for o in others if o.startswith("composer.") and ORDER.index(room(o)) > ORDER.index(room(module))]
            assert not up, f"{module} imports {', '.join(up)}, which stands above it in tests/imports.py"


@pytest.mark.parametrize("path", sources(), ids=str)
def test_packages_import_only_what_they_may(path):
    everything, at_once = read(path)
    module = ".".join(path.with_suffix("").parts)
    package, found = path.parts[0], top(everything)
    if package == "composer" and not module.startswith("composer.commands"):
        assert not found & {"decomposers", "conditions"}, "the core knows no concrete decomposer or condition"
    if package == "decomposers":
        assert "conditions" not in found
    if package == "conditions":
        assert "decomposers" not in found
    if "ultralytics" in found:
        assert path == Path("decomposers/yolo.py"), "under the AGPL-3.0: one file, which says so"
    if "lightning" in found:
        assert module in LIGHTNING
    assert "__future__" not in found, "jaxtyping has to see the annotations themselves"
    if module not in LIGHTNING:  # those are loaded by a training alone
        bars = {"rich"} if module in SHOWING else set()
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
    assert sorted(set(composer.__all__)) == composer.__all__  # type: ignore[attr-defined]  # not in its stub
    for name in composer.__all__:  # type: ignore[attr-defined]
        assert not isinstance(getattr(composer, name), type(sys)), f"{name} is hidden by the module of its name"
