"""Keeps module names from before 0.2 importable, when all modules were in one folder: plugins and YAMLs use them."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "composer.adherence": "composer.evaluation.adherence",
    "composer.caching": "composer.data.columns",
    "composer.callbacks": "composer.training.callbacks",
    "composer.captions": "composer.data.captions",
    "composer.checkpoint": "composer.training.checkpoint",
    "composer.cli": "composer.training.cli",
    "composer.clip_training": "composer.training.clip",
    "composer.composition": "composer.tasks.composition",
    "composer.config_bounds": "composer.training.config_bounds",
    "composer.config_errors": "composer.training.config_errors",
    "composer.counting": "composer.evaluation.counting",
    "composer.datasets": "composer.data.datasets",
    "composer.decomposer_costs": "composer.training.decomposer_costs",
    "composer.degradation": "composer.cascade.degradation",
    "composer.denoiser": "composer.diffusion.denoiser",
    "composer.doctor": "composer.training.doctor",
    "composer.doctor_tables": "composer.training.doctor_tables",
    "composer.dry_run": "composer.training.dry_run",
    "composer.editing": "composer.tasks.editing",
    "composer.fidelity": "composer.images.fidelity",
    "composer.files": "composer.storage.files",
    "composer.finding": "composer.storage.finding",
    "composer.folder": "composer.data.folder",
    "composer.formats": "composer.storage.formats",
    "composer.gallery": "composer.images.sheet",
    "composer.guidance": "composer.diffusion.guidance",
    "composer.locking": "composer.training.locking",
    "composer.low_res": "composer.cascade.low_res",
    "composer.markdown": "composer.images.table",
    "composer.masks": "composer.images.masks",
    "composer.metrics": "composer.evaluation.metrics",
    "composer.muon": "composer.training.muon",
    "composer.parts": "composer.cascade.parts",
    "composer.pixels": "composer.images.pixels",
    "composer.pretrained": "composer.storage.pretrained",
    "composer.prior.embeddings": "composer.data.embeddings",
    "composer.prior.evaluation": "composer.evaluation.prior",
    "composer.prior.training": "composer.training.prior",
    "composer.progress": "composer.training.progress",
    "composer.prompts": "composer.evaluation.prompts",
    "composer.reader": "composer.scenes.reader",
    "composer.reader_loss": "composer.training.reader_loss",
    "composer.reader_training": "composer.training.reader",
    "composer.recipe": "composer.tasks.recipe",
    "composer.reporting": "composer.evaluation.report",
    "composer.reranking": "composer.evaluation.best_of",
    "composer.resuming": "composer.data.resuming",
    "composer.sample_grid": "composer.training.sample_grid",
    "composer.samplers": "composer.diffusion.samplers",
    "composer.samples": "composer.evaluation.samples",
    "composer.schema": "composer.storage.schema",
    "composer.stage": "composer.cascade.stage",
    "composer.strength": "composer.diffusion.strength",
    "composer.suggestion": "composer.mistakes",
    "composer.things": "composer.scenes.things",
    "composer.things_training": "composer.training.things",
    "composer.tiling": "composer.diffusion.tiling",
    "composer.transformer": "composer.networks.transformer",
    "composer.unet": "composer.networks.unet",
    "composer.unread": "composer.data.unread",
    "composer.vote": "composer.evaluation.vote",
    "composer.warm_start": "composer.training.warm_start",
}
"""Old name of a module -> today's."""


class MovedModules(MetaPathFinder, Loader):
    """Finds a module by its old name; it is today's module itself, not a copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def install() -> None:
    """Lets Python find modules by their old names."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
