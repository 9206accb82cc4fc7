"""The schedule and the safety that all trainings share."""

import math
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from composer.autoregressive import ImageTokens
from composer.networks.dvae import DVAE
from composer.prior.diffusion import DiffusionPrior
from composer.scenes.reader import SceneReader
from composer.scenes.things import Judge
from composer.training.callbacks import EMA
from composer.training.clip import ClipTraining
from composer.training.dvae import DVAETraining
from composer.training.image_tokens import ImageTokensTraining
from composer.training.prior import PriorTraining
from composer.training.reader import ReaderTraining
from composer.training.safety import PATIENCE, SafeTraining
from composer.training.schedule import Schedule, over_whole_training
from composer.training.things import JudgeTraining
from tests.training.test_training import stage


def clip():
    vision = CLIPVisionCfg(image_size=32, layers=(1, 1, 1, 1), width=4, head_width=32)
    text = CLIPTextCfg(vocab_size=400, width=32, heads=2, layers=1, context_length=20)
    return ClipTraining(vision, text, "asset:scenes_clip/words.txt", embed_dim=16)


TRAININGS = {
    "stage": stage,
    "prior": lambda: PriorTraining(DiffusionPrior(8, 8, width=16, layers=1, heads=2)),
    "clip": clip,
    "reader": lambda: ReaderTraining(SceneReader((8, 16, 16, 16), 16)),
    "dvae": lambda: DVAETraining(DVAE(codes=8, width=8, start=4, blocks=1, levels=2)),
    "image_tokens": lambda: ImageTokensTraining(ImageTokens(8, 1, 1, 9, 9, 3, 2, 2, 3), "somewhere", 4),
    "judge": lambda: JudgeTraining(Judge(width=16)),
}


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    assert [Schedule(4, 24).rate(step) for step in (0, 3, 4, 14, 24, 99)] == pytest.approx([0.2, 0.8, 1, 0.5, 0, 0])
    assert [Schedule(4).rate(step) for step in (0, 4, 999)] == pytest.approx([0.2, 1, 1])
    assert Schedule(0).rate(0) == 1
    assert over_whole_training(4, 24) == Schedule(4, 24)
    assert [over_whole_training(4, 2).rate(step) for step in (0, 1)] == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize("steps", [(-1, None), (9, 9), (9, 3)])
def test_schedules_that_do_not_fit_together_are_refused(steps):
    with pytest.raises(ValueError, match="_steps"):
        Schedule(*steps)
    with pytest.raises(ValueError, match="_steps"):
        stage(warmup_steps=steps[0], decay_steps=steps[1])


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_every_training_refuses_float16(name, precision):
    model = TRAININGS[name]()
    model.trainer = SimpleNamespace(precision=precision, strategy=None)
    with pytest.raises(ValueError, match="float16 loses small gradients"):
        model.setup("fit")


class Line(SafeTraining):
    """Fits y = w x; samples in `broken` are not numbers."""

    def __init__(self, broken=()):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.broken, self.history = set(broken), []

    def training_step(self, batch, _):
        self.history.append(self.weight.item())
        x = torch.tensor([math.nan if seed in self.broken else 1.0 for seed in batch["seed"].tolist()])
        return (self.weight * x - 2).square().mean()

    def configure_optimizers(self):
        return Schedule(0).drive(torch.optim.SGD(self.parameters(), lr=0.25))


def run(model, folder, steps, **settings):
    seeds: Any = [{"seed": seed} for seed in range(steps * 2)]
    rows = torch.utils.data.DataLoader(seeds, batch_size=2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(**quiet, default_root_dir=folder, max_steps=steps, **settings)
    trainer.fit(model, rows)
    return trainer


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have", "ignore:.*log_every_n_steps")
def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path):
    model = Line(broken={5})
    run(model, tmp_path, 4, enable_checkpointing=False)
    assert model.history == [0, 1, 1.5, 1.5] and model.weight.item() == 1.75 and model.skipped == 1


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have", "ignore:.*log_every_n_steps")
def test_so_many_in_a_row_end_a_training_and_are_named(tmp_path):
    with pytest.raises(FloatingPointError, match=rf"{PATIENCE} steps in a row.*\[\[2, 3\], \[4, 5\]"):
        run(Line(broken=range(2, 99)), tmp_path, 20, enable_checkpointing=False)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have", "ignore:.*log_every_n_steps")
def test_validation_sees_the_average_and_fitting_goes_on_with_the_trained_weights(tmp_path):
    model = Line(broken={5})
    trainer = run(model, tmp_path, 4, callbacks=[EMA()])
    checkpoint = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)
    for fn, wanted in (("fit", checkpoint["state_dict"]), ("validate", checkpoint["ema"])):
        again, loaded = Line(), dict(checkpoint)
        device = SimpleNamespace(root_device=torch.device("cpu"))
        again.trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), strategy=device)
        again.on_load_checkpoint(loaded)
        assert again.skipped == 1 and loaded["state_dict"]["weight"] == wanted["weight"]
    assert checkpoint["ema"]["weight"] != checkpoint["state_dict"]["weight"]
