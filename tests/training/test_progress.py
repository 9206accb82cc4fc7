"""What a person sees of a training, on a terminal and elsewhere."""

import re
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image

from composer.data import ImageData, ImageFolder, SceneImages
from composer.training import progress
from composer.training.callbacks import Checkpoints
from composer.training.progress import Messages, Progress
from decomposers import Intensity, Palette
from tests.training.test_training import Losses, Spy, data, stage, trainer

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have")


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def train(root, clock, look=None, given=None, **options):
    """Trains 12 steps that take 10 seconds, then 2 each; gives each step's loss."""
    model, losses = stage(), []
    own = model.denoiser.loss
    model.denoiser.loss = lambda *args: losses.append(own(*args)) or losses[-1]

    def after(trainer, model):
        clock.now += 10 if trainer.global_step == 1 else 2
        if look is not None:
            look(trainer)

    trainer(root, Spy(train=after), Messages(), **{"max_steps": 12, "log_every_n_steps": 5} | options).fit(
        model, given or data()
    )
    return [float(loss.detach().mean()) for loss in losses]


def test_the_first_step_is_told_at_once_where_there_is_no_terminal(tmp_path, clock, capsys):
    losses = train(tmp_path, clock)
    said = capsys.readouterr().err
    lines = re.findall(r"step (\d+)/12  loss ([\d.]+)  ([\d.]+) images/s  data \d+%  about ([\d:]+) left\n", said)
    assert [(step, speed, left) for step, _, speed, left in lines] == [
        ("1", "0.4", "0:01:50"),
        ("3", "2.0", "0:00:18"),
        ("5", "2.0", "0:00:14"),
        ("10", "2.0", "0:00:04"),
    ]
    means = [losses[:1], losses[1:3], losses[3:5], losses[5:10]]
    assert [float(line[1]) for line in lines] == pytest.approx([sum(m) / len(m) for m in means], abs=6e-5)
    size = sum(p.numel() for p in stage().parameters())
    assert f"{tmp_path}: training {size:,} parameters from the start on 1 x cpu, 32-true\n" in said


def test_on_a_terminal_the_bar_tells_it_and_moves_with_every_step(tmp_path, clock, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    seen = []

    def look(trainer):  # runs before the bar hears of the step
        (bar,) = (callback for callback in trainer.callbacks if isinstance(callback, Progress))
        task = bar._bar.tasks[0]
        seen.append((task.completed, task.fields["status"][:4], task.fields["left"].strip()))

    train(tmp_path, clock, look)
    assert seen[:4] == [
        (0, "firs", ""),
        (1, "loss", "about 0:01:50 left"),
        (2, "loss", "about 0:01:40 left"),
        (3, "loss", "about 0:00:18 left"),
    ]
    assert [step for step, _, _ in seen] == list(range(12)) and seen[11][2] == "about 0:00:02 left"


class SlowData(ImageData):
    """Claims that each batch was waited for as long as that."""

    waits = 0.0
    seconds_waiting = property(lambda self: self.waits, lambda self, value: None)


@pytest.mark.parametrize(("waits", "folder"), [(0.8, True), (0.8, False), (0.3, True)])
def test_a_training_that_waits_for_a_folder_is_told_of_prepare(waits, folder, tmp_path, clock, capsys):
    for i in range(4):
        Image.new("RGB", (40, 36), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    images = ImageFolder(str(tmp_path), 16, captions="empty") if folder else SceneImages("val", 16, 4)
    slow = SlowData(images, None, {"intensity": Intensity(), "palette": Palette()}, batch_size=2)
    slow.waits = waits
    train(tmp_path / "run", clock, given=slow)
    said = capsys.readouterr().err
    assert said.count("`composer prepare` does both once") == (waits > 0.4 and folder)
    assert "note: reading images takes 40% of the time" in said or not (waits > 0.4 and folder)


def test_without_an_end_there_is_no_time_left(tmp_path, clock, capsys):
    train(
        tmp_path,
        clock,
        lambda trainer: setattr(trainer, "should_stop", trainer.global_step == 4),
        max_steps=-1,
        max_epochs=-1,
    )
    said = capsys.readouterr().err
    assert re.search(r"^step 1  loss .* data \d+%$", said, re.MULTILINE) and "left" not in said


def test_every_logger_gets_the_losses(tmp_path):
    loggers = [Losses(), Losses()]
    trainer(tmp_path, logger=loggers).fit(stage(), data())
    assert loggers[0].rows == loggers[1].rows and [row["step"] for row in loggers[0].rows] == [2, 4]


def test_a_finished_run_says_so(tmp_path, capsys):
    trainer(tmp_path, Checkpoints(100)).fit(stage(), data())
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert f"done: step 4 saved in {last}\n" in capsys.readouterr().err
    trainer(tmp_path, Checkpoints(100)).fit(stage(), data(), ckpt_path=last)
    assert "nothing to train: the run is at step 4 of 4" in capsys.readouterr().err


def test_of_several_processes_the_first_alone_speaks(tmp_path, clock, monkeypatch, capsys):
    monkeypatch.setattr(SingleDeviceStrategy, "is_global_zero", False)
    train(tmp_path, clock, limit_val_batches=1, val_check_interval=6)
    assert not re.search("training|step|loss", capsys.readouterr().err)
