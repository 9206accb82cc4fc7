"""``fit``, ``validate`` and ``test``: Lightning's command line, with our callbacks, folders and limits."""

import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import lightning as L
import omegaconf
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from .callbacks import EMA, LAST, AtomicCheckpointIO, Checkpoints, SampleGrid
from .data import ImageData
from .datasets import ImageDataset
from .decomposition import Decomposer
from .prior.training import PriorTraining
from .progress import Progress
from .training import StageTraining

TRUSTED = ("composer", "conditions", "decomposers", "lightning.pytorch", "torch.nn")
"""Import paths that a configuration may name, besides the user's plugins."""


class SaveConfig(SaveConfigCallback):
    """Writes the complete configuration to ``config.yaml`` in the run's folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, save_to_log_dir=False)

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            path = Path(trainer.default_root_dir) / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, path, skip_unset=False, overwrite=True)


class Parser(LightningArgumentParser):
    """Says what is wrong, without sixty lines of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SystemExit(f"error: {message}")


class TrainingCLI(LightningCLI):
    """Builds model, data and trainer from one YAML and runs them in ``runs/<name of the YAML>/``.

    ``let`` in a YAML holds numbers to state once and use anywhere as ``${let.name}``.
    """

    def __init__(self, args: Sequence[str] | None = None, plugins: Sequence[str] = (), run: bool = True):
        limit_imports(plugins)
        self._words = list(sys.argv[1:] if args is None else args)
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)  # `Progress` says what matters
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # Lightning 2.6 on PyTorch 2.15
        super().__init__(
            L.LightningModule,
            ImageData,
            args=None if args is None else list(args),
            run=run,
            subclass_mode_model=True,
            seed_everything_default=0,
            save_config_callback=SaveConfig if run else None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"parser_mode": "omegaconf+", "default_env": False},
            trainer_defaults={
                "check_val_every_n_epoch": None,
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 1,
                "enable_model_summary": False,
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        commands = LightningCLI.subcommands()
        return {name: commands[name] | {"weights_only"} for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--let", type=dict[str, int | float | str], default={}, help="Values to use as ${let.name}")
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(SampleGrid, "grid")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    def _parse_ckpt_path(self) -> None:
        """Reads nothing from the checkpoint: the configuration that the user gave is the one that counts."""

    def before_instantiate_classes(self) -> None:
        """Settles the run's folder and what to resume from."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = str(Path("runs") / _named_after(self._words))
        last = Path(config.trainer.default_root_dir) / "checkpoints" / LAST
        if config.ckpt_path == "last":
            config.ckpt_path = str(last) if last.exists() or self.subcommand != "fit" else None
            print(f"resuming {last}" if last.exists() else f"nothing to resume at {last}, starting", file=sys.stderr)
        elif self.subcommand == "fit" and config.ckpt_path is None and last.exists():
            raise FileExistsError(
                f"{last.parent.parent} holds a run already. Continue it with --ckpt_path last, or start another with "
                "--trainer.default_root_dir FOLDER"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self._get(self.config_init, "trainer", default={})
        root = config["default_root_dir"]
        if config["logger"] is None or config["logger"] is True:
            kwargs["logger"] = TensorBoardLogger(root or "runs", name="", version="tensorboard")
        kwargs["plugins"] = [*(config["plugins"] or []), AtomicCheckpointIO()]
        kwargs["callbacks"] = [*(config["callbacks"] or []), Progress()]
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Gives a stage or a prior its configuration, as plain values, to travel with the checkpoints."""
        if not isinstance(self.model, StageTraining | PriorTraining):
            return
        dumped = json.loads(self.parser.dump(self.config, format="json", skip_unset=False, skip_link_targets=False))
        if self.subcommand is not None:
            dumped = dumped[self.subcommand]
        self.model.config = {"model": dumped["model"], "data": dumped["data"]}


class ModelAlone(TrainingCLI):
    """Reads a training's whole configuration but builds its model alone, on the meta device: the data may need weights.

    Args:
        words: Of the training's command line: ``-c FILE`` and what it changes.
        plugins: Modules that the user trusts.
    """

    def __init__(self, words: Sequence[str], plugins: Sequence[str] = ()):
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # the words are none of its own
        super().__init__(words, plugins, run=False)

    def instantiate_classes(self) -> None:
        without = [(lambda *args, **kwargs: None, data, True) for data in (ImageData, ImageDataset, Decomposer)]
        with torch.device("meta"):
            self.model = self.parser.instantiate(self.config, instantiators=without).model

    def after_instantiate_classes(self) -> None:
        """Nothing is trained."""


def _named_after(words: Sequence[str]) -> str:
    """The first configuration's name. Read from the words: interpolation drops the parser's own record of it."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        path = following if word in ("-c", "--config") else word.partition("--config=")[2]
        if path:
            return Path(path).stem
    return "unnamed"


def limit_imports(plugins: Sequence[str]) -> None:
    """Lets a configuration name only our own classes and those of the user's plugins.

    Environment variables are not read in a configuration either: a saved copy would give them away.

    Args:
        plugins: Modules that the user trusts.
    """
    jsonargparse.set_parsing_settings(
        omegaconf_absolute_to_relative_paths=True,
        import_path_denylist=["*"],
        import_path_allowlist=[*TRUSTED, *plugins],
    )
    omegaconf.OmegaConf.clear_resolver("oc.env")
