import os
import pickle
import resource
import signal
from itertools import pairwise

import lightning as L
import pytest
import torch

from composer.conditioning import Conditioning
from composer.data.datasets import ImageDataset
from composer.data.loading import ImageData
from composer.diffusion.denoiser import Cosine, Denoiser, LogNormal, shares
from composer.networks.unet import UNet
from composer.training import checkpoint as checkpoints
from composer.training.callbacks import EMA, AtomicCheckpointIO, Checkpoints
from composer.training.progress import Progress
from composer.training.safety import PATIENCE
from composer.training.stage import StageTraining, _known, stream
from conditions import Spatial, Vector
from decomposers import Intensity, Palette

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have")


class Gradients(ImageDataset):
    """Ramps; those with an index in `broken` claim a palette of NaN."""

    def __init__(self, count=12, broken=()):
        self.count, self.broken = count, broken
        self.columns = frozenset({"palette"} if broken else ())

    def __len__(self):
        return self.count

    def row(self, index, seed):
        ramp = torch.linspace(-1, 1, 16).expand(3, 16, 16) * torch.tensor([1.0, index / 12, -1.0])[:, None, None]
        wrong = {"palette": torch.full((156,), torch.nan)} if index in self.broken else {}
        return {"image": ramp, "caption": ""} | wrong


class Losses(L.pytorch.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({"step": step, **metrics})


def data(broken=(), **kwargs):
    kwargs = {"batch_size": 4, "validation_batch_size": 4} | kwargs
    decomposers = {"intensity": Intensity(), "palette": Palette()}
    return ImageData(Gradients(broken=broken), Gradients(), decomposers, **kwargs)


def stage(**kwargs):
    torch.manual_seed(0)
    network = UNet(
        width=16, multipliers=(1, 2), blocks=1, attention=(2,), head_dim=16, vector_dim=16, token_dim=16, spatial_dim=4,
        dropout=0.1,
    )  # fmt: skip
    conditions = {"intensity": Spatial(1, 4, dropout=0.7), "palette": Vector(156, 16, 16)}
    return StageTraining(
        Denoiser(network, Cosine()), conditions, **{"size": 16, "learning_rate": 1e-2, "warmup_steps": 1} | kwargs
    )


def trainer(root, *callbacks, **kwargs):
    defaults = {
        "accelerator": "cpu",
        "max_steps": 4,
        "log_every_n_steps": 2,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": None,
        "logger": False,
        "enable_model_summary": False,
        "gradient_clip_val": 1.0,
        "enable_checkpointing": any(isinstance(c, Checkpoints) for c in callbacks),
    }
    return L.Trainer(
        default_root_dir=root,
        callbacks=[*callbacks, Progress()],
        plugins=[AtomicCheckpointIO()],
        **defaults | kwargs,
    )


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Spy(L.Callback):
    """Calls a function after every step or validation batch."""

    def __init__(self, train=None, validation=None):
        self.train, self.validation = train, validation

    def on_train_batch_end(self, trainer, pl_module, *args):
        if self.train:
            self.train(trainer, pl_module)

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if self.validation:
            self.validation(trainer, pl_module)


def test_a_stream_depends_on_its_key_alone():
    def draw(*key):
        return torch.rand(4, generator=stream(*key)).tolist()

    assert draw("noise", 0, 7) == draw("noise", 0, 7)
    assert len({tuple(draw(*key)) for key in (("noise", 0, 7), ("noise", 7, 0), ("keep", 0, 7), ("noise", 0, 8))}) == 4


def test_average_follows_its_formula(tmp_path):
    seen, ema, model = [], EMA(0.5), stage()
    before = weights(model)
    trainer(tmp_path, Spy(train=lambda t, m: seen.append(weights(m))), ema, max_steps=5).fit(model, data())
    assert not same(before, seen[-1])
    for name, value in ema.shadow.items():
        expected = before[name].double()
        for n, row in enumerate(seen, 1):
            decay = min(0.5, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * row[name].double()
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=0)


def test_validation_sees_the_average_and_leaves_no_trace(tmp_path):
    """Also when it fails, and in a checkpoint that is written amid it."""
    ema, seen = EMA(0.5), {}

    def look(trainer, model):
        seen["averaged"] = same(weights(model), ema.shadow)
        trainer.save_checkpoint(tmp_path / "amid.ckpt")

    validated = {"limit_val_batches": 2, "val_check_interval": 2}
    runs = [stage(), stage(), stage()]
    trainer(tmp_path).fit(runs[0], data())
    trainer(tmp_path, ema, Spy(validation=look), **validated).fit(runs[1], data())
    assert seen["averaged"] and same(weights(runs[0]), weights(runs[1]))

    def fail(trainer, model):
        if trainer.global_step == 4:
            trainer.save_checkpoint(tmp_path / "amid.ckpt")
            raise RuntimeError("amid validation")

    with pytest.raises(RuntimeError, match="amid validation"):
        trainer(tmp_path, EMA(0.5), Spy(validation=fail), **validated).fit(runs[2], data())
    assert same(weights(runs[0]), weights(runs[2]))
    saved = checkpoints.load(tmp_path / "amid.ckpt")
    assert same(weights(runs[0]), saved["state_dict"]) and same(ema.shadow, saved["ema"])


def test_validation_does_not_depend_on_its_batches(tmp_path):
    def measure(batch_size):
        model = stage()
        for p in model.parameters():  # a new network ignores its conditions
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
        return trainer(tmp_path, limit_val_batches=1.0).validate(
            model, data(validation_batch_size=batch_size), verbose=False
        )[0]

    one, other = measure(5), measure(12)
    at_high_noise = {f"val/{kept}/{level}" for kept in ("none", "alone/palette") for level in (8, 16)}
    assert set(one) == {"val/loss", "val/all", "val/none", "val/alone/intensity", "val/alone/palette"} | at_high_noise
    assert one == pytest.approx(other, rel=1e-5)
    assert len({round(v, 6) for v in one.values()}) > 2


def test_validation_levels_are_fixed(tmp_path):
    """The error is computed again item by item, without conditioning, and does not heed what training draws."""

    def measure(**kwargs):
        model = stage(**kwargs)
        torch.nn.init.normal_(model.denoiser.network.last[2].weight, generator=torch.Generator().manual_seed(1))
        found = trainer(tmp_path, limit_val_batches=1.0).validate(model, data(), verbose=False)[0]
        return model, {name: value for name, value in found.items() if name != "val/loss"}

    levels = (0.5, 3.0, 9.0)
    model, found = measure(validation_levels=levels)
    errors = []
    for item, row in enumerate(data().validation.row(i, 0) for i in range(12)):
        image = row["image"][None]
        noise = torch.randn(image.shape, generator=stream("validation", item))
        sigma = levels[item % 3]
        x = image + sigma * noise
        with torch.no_grad():
            estimate = model.denoiser.eval()(x, torch.tensor([sigma]), Conditioning())
        best = image.numel() / (1 / sigma**2 + 1 / 0.5**2)  # of a Gaussian of standard deviation 0.5
        errors.append(float((estimate - image).square().sum()) / best)
    assert found["val/none"] == pytest.approx(sum(errors) / 12, rel=1e-4)
    assert found["val/none/3"] == pytest.approx(sum(errors[1::3]) / 4, rel=1e-4)
    assert found["val/none/9"] == pytest.approx(sum(errors[2::3]) / 4, rel=1e-4)
    _, again = measure(validation_levels=levels, noise_without_maps=LogNormal(3, 0.5), drop_all=0.5)
    assert again == found
    with pytest.raises(ValueError, match="rising order"):
        stage(validation_levels=(2, 1))


def test_a_network_that_learnt_nothing_has_the_error_1():
    """Its `v` is 0; `unlearnt` is also the weight that the target `v` has."""
    model = stage()
    image = torch.randn(2000, 3, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
    sigma = torch.tensor([0.1, 1, 8]).repeat(667)[:2000]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        share = model.denoiser.error(image, Conditioning(), sigma, noise) / model.denoiser.unlearnt(sigma)
    assert share.mean().item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(model.denoiser.unlearnt(sigma), 1 / model.denoiser.weight(sigma))


def test_losses_by_condition_are_means_over_the_rows_that_kept_it(tmp_path):
    logger, model = Losses(), stage()
    keeps, rows = [], []
    draw, loss = model.conditions.draw_keep, model.denoiser.loss
    model.conditions.draw_keep = lambda *args: keeps.append(draw(*args)) or keeps[-1]
    model.denoiser.loss = lambda *args: rows.append(loss(*args)) or rows[-1]
    trainer(tmp_path, logger=logger, max_steps=2).fit(model, data())
    (logged,) = logger.rows
    losses = torch.cat(rows).detach()
    assert logged["step"] == 2 and logged["train/loss"] == pytest.approx(losses.mean().item())
    for name in ("intensity", "palette"):
        kept = torch.cat([k[name] for k in keeps])
        assert kept.any() and logged[f"train/kept/{name}"] == pytest.approx(losses[kept].mean().item())


def test_rows_without_maps_have_noise_of_their_own(tmp_path):
    """Row by row the quantiles of one draw, by what the row keeps in the end."""
    model = stage(noise_without_maps=LogNormal(3, 0.5), seed=5)
    keeps, sigmas = [], []
    draw, loss = model.conditions.draw_keep, model.denoiser.loss
    model.conditions.draw_keep = lambda *args: keeps.append(draw(*args)) or keeps[-1]
    model.denoiser.loss = lambda *args: sigmas.append(args[2]) or loss(*args)
    trainer(tmp_path, max_steps=6).fit(model, data())
    for step, (keep, sigma) in enumerate(zip(keeps, sigmas, strict=True)):
        u = shares(4, stream("sigma", 5, step))
        assert torch.equal(sigma, torch.where(keep["intensity"], Cosine().sigma(u), LogNormal(3, 0.5).sigma(u)))
    kept = torch.cat([k["intensity"] for k in keeps])
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(model._sigma(u, {"intensity": torch.ones(4, dtype=torch.bool)}, {}), LogNormal(3, 0.5).sigma(u))


class Blind(Palette):
    def can_read(self, batch):
        return False


def test_the_one_that_is_kept_is_one_that_the_data_has(tmp_path):
    model, keeps = stage(drop_all=0.0, keep_all=0.0, keep_one=1.0), []
    draw = model.conditions.draw_keep
    model.conditions.draw_keep = lambda *args: keeps.append(draw(*args)) or keeps[-1]
    poor = ImageData(Gradients(), Gradients(), {"intensity": Intensity(), "palette": Blind()}, batch_size=4)
    trainer(tmp_path, max_steps=3, limit_val_batches=2, val_check_interval=2).fit(model, poor)
    assert len(keeps) > 3 and all(k["intensity"].all() and not k["palette"].any() for k in keeps)


def test_rows_without_a_representation_are_dropped():
    keep = {"depth": torch.tensor([True, True, False]), "palette": torch.tensor([True, False, True])}
    known = {"known": {"depth": torch.tensor([True, False, True])}}
    assert {k: v.tolist() for k, v in _known(keep, known).items()} == {
        "depth": [True, False, False],
        "palette": [True, False, True],
    }


def test_gradients_are_clipped_by_their_norm():
    model = stage()
    optimizer = model.configure_optimizers()["optimizer"]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model._samples = [torch.tensor([1])]
    model.configure_gradient_clipping(optimizer, 0.5, "norm")
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(ValueError, match="norm"):
        model.configure_gradient_clipping(optimizer, 0.5, "value")


def test_one_broken_sample_costs_one_step(tmp_path):
    history, model = [weights(stage())], stage(drop_all=0.0, keep_all=1.0)
    spy = Spy(train=lambda t, m: history.append(weights(m)))
    trainer(tmp_path, spy, max_steps=3).fit(model, data(broken={5}))  # 3 batches of 4 see each of the 12 rows once
    unchanged = [same(a, b) for a, b in pairwise(history)]
    assert sum(unchanged) == model.skipped == 1
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_training_that_broke_ends_and_names_the_samples(tmp_path):
    model = stage(drop_all=0.0, keep_all=1.0)
    with pytest.raises(FloatingPointError, match=r"5 steps in a row.*seed") as error:
        trainer(tmp_path, EMA(), Checkpoints(1), max_steps=50).fit(model, data(broken=range(12)))
    assert model.skipped == PATIENCE
    assert str(error.value).count("[") == 1 + PATIENCE  # the samples of each step
    assert all(v.isfinite().all() for v in checkpoints.load(tmp_path / "checkpoints/last.ckpt")["ema"].values())


def test_other_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="32 x 32 pixels, the data gives 16 x 16"):
        trainer(tmp_path).fit(stage(size=32), data())


@pytest.fixture
def interruptible():
    """Python's own handler of Ctrl-C, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("amid_validation", [False, True])
def test_signals_save_and_resume_exactly(tmp_path, number, status, amid_validation, capfd):
    def send(trainer, model):
        if trainer.global_step == 2:
            os.kill(os.getpid(), number)

    spy = Spy(validation=send) if amid_validation else Spy(train=send)
    options = {"max_steps": 5, "limit_val_batches": 3, "val_check_interval": 2}
    whole, broken, resumed = stage(), stage(), stage(seed=0)
    average = EMA(0.9)
    trainer(tmp_path / "whole", average, **options).fit(whole, data())
    with pytest.raises(SystemExit) as exit:
        trainer(tmp_path, spy, EMA(0.9), Checkpoints(100), **options).fit(broken, data())
    assert exit.value.code == status
    said, name, last = capfd.readouterr().err, signal.Signals(number).name, tmp_path / "checkpoints/last.ckpt"
    assert f"{name}: saving after this step" in said and f"{name}: step 2 saved in {last}" in said
    assert "--ckpt_path last" in said and ("once more after 2 s ends at once" in said) == (number == signal.SIGINT)
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):  # the handler is Python's own again
            signal.raise_signal(number)
    assert checkpoints.load(last)["global_step"] == 2
    again = EMA(0.9)
    trainer(tmp_path, again, Checkpoints(100), **options).fit(resumed, data(), ckpt_path=last)
    assert same(weights(whole), weights(resumed)) and same(average.shadow, again.shadow)
    assert checkpoints.load(last)["global_step"] == 5


def test_checkpoints_that_are_kept(tmp_path):
    trainer(tmp_path, EMA(), Checkpoints(2, keep_every=4), max_steps=9).fit(stage(), data())
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "last.ckpt",
        "previous.ckpt",
        "step-0000004.ckpt",
        "step-0000008.ckpt",
    ]


def test_checkpoints_take_what_was_expected(tmp_path, monkeypatch):
    """The bytes of each, and how many there are at once while one is written."""
    there, save = [], checkpoints.save

    def spy(checkpoint, path, keep=None):
        there.append(len(list(path.parent.glob("*.ckpt"))) + 1)
        save(checkpoint, path, keep)

    monkeypatch.setattr(checkpoints, "save", spy)
    model, callback = stage(), Checkpoints(2, keep_every=4)
    trainer(tmp_path, EMA(), callback, max_steps=9).fit(model, data())
    assert max(there) == callback.most_at_once(9) == 5
    assert callback.most_at_once(-1) is None and Checkpoints(2).most_at_once(-1) == 3
    last = tmp_path / "checkpoints" / "last.ckpt"
    held = checkpoints.load(last)
    moments = [x for state in held["optimizer_states"][0]["state"].values() for x in state.values() if x.ndim]
    size = sum(x.nbytes for x in (*held["state_dict"].values(), *held["ema"].values(), *moments))
    assert checkpoints.expected_size(model) == size < last.stat().st_size < 1.1 * size
    model.denoiser.requires_grad_(False)
    conditions = sum(p.numel() for p in model.conditions.parameters())
    everything = sum(p.numel() for p in model.parameters())
    assert checkpoints.expected_size(model) == 4 * everything + 12 * conditions


def test_outside_of_fit_a_checkpoint_means_its_average(tmp_path):
    ema = EMA(0.9)
    trainer(tmp_path, ema, Checkpoints(2), max_steps=3).fit(stage(), data())
    model = stage()
    trainer(tmp_path, EMA(), limit_val_batches=1).validate(
        model, data(), ckpt_path=tmp_path / "checkpoints/last.ckpt", verbose=False
    )
    assert same(weights(model), ema.shadow)


def test_a_stage_says_how_it_was_built(tmp_path):
    model, ema = stage(), EMA(0.9)
    model.config = {"model": {"class_path": "StageTraining"}, "data": {}}
    trainer(tmp_path, ema, Checkpoints(2), max_steps=2).fit(model, data())
    config, averaged = checkpoints.load_stage(tmp_path / "checkpoints/last.ckpt")
    assert config == model.config and same(averaged, ema.shadow)


def old(path):
    checkpoints.save({"state_dict": {"w": torch.ones(3)}}, path)
    return path.read_bytes()


def test_broken_weights_are_never_written(tmp_path):
    path = tmp_path / "last.ckpt"
    before = old(path)
    for bad in (torch.inf, -torch.inf, torch.nan):
        tensor = torch.tensor([1, bad])
        moments = [{"state": {3: {"step": torch.tensor(2.0), "exp_avg": torch.ones(2), "exp_avg_sq": tensor}}}]
        for part, content, name in (
            ("state_dict", {"v": torch.ones(0), "w": tensor.bfloat16()}, "state_dict.w"),
            ("ema", {"w": tensor}, "ema.w"),
            ("optimizer_states", moments, r"optimizer_states.0.state.3.exp_avg_sq"),
        ):
            with pytest.raises(FloatingPointError, match=f"{name} is not finite; nothing was written"):
                checkpoints.save({"state_dict": {"n": torch.tensor(1)}} | {part: content}, path)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    before = old(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .* MiB are free"):
            checkpoints.save({"state_dict": {"w": torch.ones(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    with pytest.raises(OSError, match="MiB are free: make room"):
        checkpoints.require_space(tmp_path, 1 << 60)


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "last.ckpt"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    torch.save({"state_dict": {}, "hyper_parameters": Attack()}, path)
    with pytest.raises(ValueError, match="pickled"):
        checkpoints.load(path)
    path.write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(ValueError, match=r"pickled|damaged"):
        checkpoints.load(path)
    assert not (tmp_path / "hacked").exists()
    path.write_bytes(old(path)[:-50])
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(path)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoints.load(path)
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
        checkpoints.load(tmp_path / "none.ckpt")
    old(path)
    with pytest.raises(ValueError, match="composer fit"):
        checkpoints.load_stage(path)
