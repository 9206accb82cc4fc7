"""``fit``, ``validate`` and ``test``: Lightning's command line, with our callbacks, folders and limits."""

import importlib
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import lightning as L
import omegaconf
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from composer.data.datasets import ImageDataset, parts_of
from composer.data.loading import ImageData
from composer.data.shard_folder import ShardFolder
from composer.decomposition import Decomposer
from composer.mistakes import Mistake
from composer.networks.unet import UNet as UNet  # a configuration may call it by its bare name
from composer.storage.files import read_text
from composer.terminal import note
from composer.training.autoencoder import AutoencoderTraining
from composer.training.callbacks import EMA, AtomicCheckpointIO, Checkpoints
from composer.training.checkpoint import LAST, PREVIOUS
from composer.training.config_bounds import MAX_CHARACTERS, bound_configurations
from composer.training.config_errors import explain
from composer.training.dvae import DVAETraining
from composer.training.feature_maps import FeatureMaps
from composer.training.image_tokens import ImageTokensTraining
from composer.training.locking import lock_folder
from composer.training.prior import PriorTraining
from composer.training.progress import Messages, Progress
from composer.training.reader_loss import ReaderLoss
from composer.training.sample_grid import SampleGrid
from composer.training.stage import StageTraining

TRUSTED = ("composer", "conditions", "decomposers", "lightning.pytorch", "torch.nn")
"""Import paths that a configuration may name, besides the user's plugins."""


EXPORTED = (StageTraining, PriorTraining, AutoencoderTraining, DVAETraining, ImageTokensTraining)
"""Trainings whose checkpoints `composer export` makes a model of."""


class SaveConfig(SaveConfigCallback):
    """Writes the complete configuration to ``config.yaml`` in the run's folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, save_to_log_dir=False)

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            path = Path(trainer.default_root_dir) / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_name(".config.yaml")  # a kill leaves the one that stood there
            self.parser.save(self.config, whole, skip_unset=False, overwrite=True)
            whole.replace(path)


class TrainingParser(LightningArgumentParser):
    """Says what is wrong, without sixty lines of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries something out
            super().error(message, ex)
        subparsers = [p for action in self._actions for p in (getattr(action, "choices", None) or {}).values()]
        keys = [action.dest for parser in (self, *subparsers) for action in parser._actions]
        raise Mistake(explain(message, keys, configs_of(self.args), TRUSTED))


class TrainingCLI(LightningCLI):
    """Builds model, data and trainer from one YAML and runs them in ``runs/<name of the YAML>/``.

    ``let`` in a YAML holds numbers to state once and use anywhere as ``${let.name}``.
    """

    def __init__(self, args: Sequence[str] | None = None, plugins: Sequence[str] = (), run: bool = True):
        bound_configurations()
        limit_imports(plugins)
        import_classes(plugins)
        self._words = list(sys.argv[1:] if args is None else args)
        for path in configs_of(self._words):
            if path.exists():
                read_text(path, MAX_CHARACTERS)  # says of which file it is that it is no text
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)  # `Progress` says what matters
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # Lightning 2.6 on PyTorch 2.15
        with ExitStack() as self._until_the_end:
            super().__init__(
                L.LightningModule,
                ImageData,
                args=None if args is None else list(args),
                run=run,
                subclass_mode_model=True,
                seed_everything_default=0,
                parser_class=TrainingParser,
                save_config_callback=SaveConfig if run else None,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={"prog": "composer", "parser_mode": "omegaconf+", "default_env": False},
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
        return {name: commands[name] | {"weights_only"} for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--let", type=dict[str, int | float | str], default={}, help="Values to use as ${let.name}")
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(SampleGrid, "grid")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    def _parse_ckpt_path(self) -> None:
        """Reads nothing from the checkpoint: the configuration that the user gave is the one that counts."""

    def before_instantiate_classes(self) -> None:
        """Determines the run's folder and the checkpoint to resume from."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        config.trainer.default_root_dir = self.run_folder(config)
        root = Path(config.trainer.default_root_dir)
        if self.subcommand == "fit" and rank_zero_only.rank == 0:
            self._until_the_end.enter_context(lock_folder(root))
        last = root / "checkpoints" / LAST
        exists = last.exists() or last.with_name(PREVIOUS).exists()
        if config.ckpt_path == "last":
            config.ckpt_path = str(last) if exists or self.subcommand != "fit" else None
            note(f"resuming {last}" if exists else f"nothing to resume at {last}, starting")
        elif self.subcommand == "fit" and config.ckpt_path is None and exists:
            raise FileExistsError(
                f"{last.parent.parent} holds a run already. Continue it with --ckpt_path last, or start another with "
                "--trainer.default_root_dir FOLDER"
            )

    def run_folder(self, config: Any) -> str:
        """The run's folder: the one that the configuration names, or else one with the configuration's own name."""
        return config.trainer.default_root_dir or str(Path("runs") / _named_after(self._words))

    def instantiate_classes(self) -> None:
        """Builds everything; what a class refuses is told in its own words, without the section that it was in."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if "Union subtypes" not in str(error):
                raise
            raise Mistake(explain(str(error), (), configs_of(self._words), TRUSTED)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self._get(self.config_init, "trainer", default={})
        root = config["default_root_dir"]
        if config["logger"] is None or config["logger"] is True:
            board = TensorBoardLogger(root or "runs", name="", version="tensorboard")
            kwargs["logger"] = board if self.subcommand == "fit" else False  # what is measured later has no step to log
        kwargs["plugins"] = [*(config["plugins"] or []), AtomicCheckpointIO()]
        kwargs["callbacks"] = [*(config["callbacks"] or []), Messages()]
        if config["enable_progress_bar"] is not False:  # Lightning refuses a bar where none may be
            kwargs["callbacks"].append(Progress())
        return super().instantiate_trainer(**kwargs)

    def _check_prepared(self, data: Any) -> None:
        """Compares this training's decomposers with those that its shards were prepared by."""
        specs, built = specs_of(data.decomposers), self.datamodule.decomposers
        for whole in filter(None, (self.datamodule.train, self.datamodule.validation)):
            for part in parts_of(whole):
                if isinstance(part, ShardFolder):
                    part.check_prepared(specs, {name for name in specs if built[name].at_source}, data.source)

    def after_instantiate_classes(self) -> None:
        """Gives a training whose run is exported its configuration, as plain values, to be saved in checkpoints."""
        if self.subcommand == "fit":
            self._check_prepared(self.config.fit.data)
        if not isinstance(self.model, EXPORTED):
            return
        dumped = json.loads(self.parser.dump(self.config, format="json", skip_unset=False, skip_link_targets=False))
        if self.subcommand is not None:
            dumped = dumped[self.subcommand]
        self.model.config = {"model": dumped["model"], "data": dumped["data"]}


def run_training(plugins: Sequence[str] = ()) -> None:
    """Runs the process's own command line.

    Args:
        plugins: Modules that the user trusts.

    Raises:
        ValueError: A mistake in the configuration, of which Lightning's own are no such errors.
    """
    try:
        TrainingCLI(plugins=plugins)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


class Configuration(TrainingCLI):
    """Reads a training's whole configuration and builds nothing.

    Args:
        words: Of the training's command line: ``-c FILE`` and what it changes.
        plugins: Modules that the user trusts.
    """

    def __init__(self, words: Sequence[str], plugins: Sequence[str] = ()):
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # the words are none of its own
        super().__init__(words, plugins, run=False)

    def instantiate_classes(self) -> None:
        """Builds nothing."""

    def after_instantiate_classes(self) -> None:
        """Nothing is trained."""


class ModelAlone(Configuration):
    """Builds a training's model alone, on the meta device: the data may need weights."""

    def instantiate_classes(self) -> None:
        none = (ImageData, ImageDataset, Decomposer, ReaderLoss, FeatureMaps)
        without = [(lambda *args, **kwargs: None, data, True) for data in none]
        with torch.device("meta"):
            self.config_init = self.parser.instantiate(self.config, instantiators=without)
        self.model = self.config_init.model


def specs_of(decomposers: Mapping[str, Any]) -> dict[str, Any]:
    """How a configuration's decomposers are built, as plain JSON values."""
    plain = {name: spec.as_dict() if hasattr(spec, "as_dict") else spec for name, spec in decomposers.items()}
    specs: dict[str, Any] = json.loads(json.dumps(plain, default=str))
    return specs


def _named_after(words: Sequence[str]) -> str:
    """The first configuration's name."""
    return next((path.stem for path in configs_of(words)), "unnamed")


def configs_of(words: Sequence[str]) -> list[Path]:
    """The configurations that a command line names. Interpolation drops the parser's own record of them."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    paths = [after if word in ("-c", "--config") else word.partition("--config=")[2] for word, after in pairs]
    return [Path(path) for path in paths if path]


def import_classes(plugins: Sequence[str]) -> None:
    """Imports what a configuration names by short names: our own classes and those of the user's plugins."""
    public = importlib.import_module("composer")
    for name in public.__all__:  # they are imported when they are first used
        getattr(public, name)
    for module in ("conditions", "decomposers", *plugins):
        importlib.import_module(module)


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
