"""What `doctor` says, beside counts by hand, torch's own counter, and memory that a process really took."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import conditions
from composer.__main__ import main
from composer.autoregressive.dvae import dvae_loss
from composer.autoregressive.image_tokens import ImageTokens
from composer.conditioning import ConditionSet
from composer.diffusion.denoiser import Denoiser, LogNormal
from composer.networks.autoencoder import Autoencoder
from composer.networks.discriminator import PatchDiscriminator
from composer.networks.dvae import DVAE
from composer.networks.unet import UNet
from composer.training.autoencoder_loss import autoencoder_loss
from composer.training.doctor import MemoryNeed, TrainingCost, disk_of, estimate_needs
from composer.training.doctor_strategies import Strategies, gathered_bytes
from composer.training.dry_run import Kernels, LiveBytes, count_flops, sampling_step, training_flops, training_memory

PLAN: dict[str, Any] = {
    "width": 32,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [2],
    "head_dim": 16,
    "vector_dim": 64,
}
PLAN |= {"token_dim": 32, "spatial_dim": 4}
CONDITIONS = {
    "caption": lambda: conditions.Text(24, 64, 32),
    "t5": lambda: conditions.Text(24, 64, 32, sentence=False),
    "tokens": lambda: conditions.TextTransformer(50, 16, 1, 2, 64, 32, length=6),
    "palette": lambda: conditions.Vector(20, 64, 32),
    "sketch": lambda: conditions.Spatial(1, 4, hidden=4),
    "instances": lambda: conditions.Instances(3, 4),
    "low_res": lambda: conditions.LowRes(4, 64),
}


def stage(device="meta", names=("palette", "sketch"), **plan) -> tuple[Denoiser, ConditionSet]:
    with torch.device(device):
        conds = ConditionSet({name: CONDITIONS[name]() for name in names})
        return Denoiser(UNet(**(PLAN | plan)), LogNormal()), conds


class Little(UNet):
    """A network of one convolution, from 3 + 4 channels to 3."""

    def __init__(self):
        nn.Module.__init__(self)
        self.checkpointing = False
        self.conv = nn.Conv2d(7, 3, 3, padding=1)

    def forward(self, x, level, cond):
        return self.conv(torch.cat([x, cond.spatial], 1))

    def prepare(self, cond):
        return cond


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_give_an_example_of_what_they_read(name):
    condition = CONDITIONS[name]()
    value = condition.example(2, (16, 24))
    cond = condition(value, torch.ones(2, dtype=torch.bool), (16, 24))
    assert len(value) == 2 and any(port is not None for port in (cond.vector, cond.tokens, cond.spatial))
    assert cond.token_mask is None or cond.token_mask.all()  # the most that it may cost
    with torch.device("meta"):
        assert condition.example(2, (16, 24)).is_meta


def test_one_convolution_by_hand():
    with torch.device("meta"):
        denoiser = Denoiser(Little(), LogNormal(), target="x0")
        conds = ConditionSet({"sketch": conditions.Spatial(1, 4, hidden=8)})
    report = estimate_needs(denoiser, conds, size=32, side=16, batch=5, accumulate=2, guided=False)
    first, second, last = 1 * 8 * 9, 8 * 4 * 9, 7 * 3 * 9  # weights of the three convolutions
    assert report.network == last + 3 and report.conditions == {"sketch": first + 8 + second + 4}
    assert report.trainable == report.parameters
    forward = 2 * 16 * 16 * (first + second + last)
    assert report.configured.forward_flops == forward
    # Backward: as much for the weights, and as much for the inputs, but for the first one's, which needs no gradient.
    assert report.configured.flops == 3 * forward - 2 * 16 * 16 * first
    assert report.sampling.flops == 2 * 32 * 32 * last and report.sampling.rows == 1
    memory, size = report.configured.memory, 4 * report.parameters
    assert (memory.weights, memory.gradients, memory.moments, memory.average) == (size, size, 2 * size, size)
    assert report.configured.totals.keys() == {1, 5, 80} and report.configured.totals[5] == memory.total


def test_one_layers_memory_by_hand():
    """The first layer's outcome lives until the sigmoid is done, whose own outcome is kept, as the input is."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(10, 40), nn.Sigmoid(), nn.Linear(40, 5))
        with LiveBytes(net) as live:
            out = net(torch.empty(8, 10))
            assert live.peak == 4 * 8 * (10 + 40 + 40) and live.now == 4 * 8 * (10 + 40 + 5)
            del out
        assert live.now == 0


def test_frozen_weights_take_no_gradients():
    denoiser, conds = stage()
    conds.requires_grad_(False)
    report = estimate_needs(denoiser, conds, 8, 8, 2)
    assert report.trainable == report.network < report.parameters
    assert report.configured.memory.gradients == 4 * report.network < report.configured.memory.weights


def real_step(denoiser, conds, images, side):
    """The loss of a training step on real tensors."""
    reps = {name: condition.example(images, (side, side)) for name, condition in conds.named()}
    image, sigma = torch.randn(images, 3, side, side), torch.ones(images)
    return denoiser.loss(image, conds(reps, (side, side)), sigma, image).mean()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("names", [("palette", "sketch"), ("caption", "t5", "tokens", "instances", "low_res")])
def test_flops_are_those_of_torchs_counter(names, checkpointing):
    """On real tensors; as trained, from the images to the gradients."""
    plan = {"names": names, "checkpointing": checkpointing}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = real_step(*stage("cpu", **plan), 3, 8)
        forward = counter.get_total_flops()
        loss.backward()
    total = counter.get_total_flops()
    assert training_flops(*stage("meta", **plan), 8, 3) == (forward, total) and total > (2.5 + checkpointing) * forward


def test_attention_is_counted_whatever_the_precision():
    """And whatever the kernel: by hand, and on real tensors."""
    forward, total = training_flops(*stage(), 16, 2)
    without, _ = training_flops(*stage(attention=[]), 16, 2)
    tokens, layers, c, pixels = 4, 4, 64, 64
    a_layer = 4 * pixels * c * c + pixels * c * (pixels + tokens) * 2 + 2 * tokens * 32 * c  # qkv and out, scores, keys
    assert 2 * 2 * layers * a_layer == forward - without
    for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(kernel):
            assert training_flops(*stage(), 16, 2) == (forward, total)
    for precision in (torch.float32, torch.bfloat16):
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision != torch.float32)
        with count_flops() as counter:
            with mixed:
                loss = real_step(*stage("cpu"), 2, 16)
            found = counter.get_total_flops()
            loss.backward()
        assert (found, counter.get_total_flops()) == (forward, total)


def test_largest_batch_is_the_largest_that_fits():
    plan = TrainingCost(False, 0, 0, MemoryNeed(0, 0, 0, 0, 0, 0), {1: 110, 10: 200, 160: 3200})
    found = [plan.largest_batch(space) for space in (0, 109, 110, 119, 120, 199, 200, 219, 220, 3200, 4200)]
    assert found == [0, 0, 1, 1, 2, 9, 10, 10, 11, 160, 210] and plan.per_image == 20


def test_memory_between_the_measured_batches_is_at_most_what_is_said():
    report = estimate_needs(*stage(), 16, 16, 8, precision="bf16-mixed")
    for plan in (report.configured, report.otherwise):
        _, peak = training_memory(*stage(checkpointing=plan.checkpointing), 16, 40, Kernels("cuda", torch.bfloat16))
        total = plan.memory.total - plan.memory.kept - plan.memory.transient + peak
        assert plan.largest_batch(total) <= 40 <= 1.1 * plan.largest_batch(total)
    plan, other = report.configured, report.otherwise
    assert not plan.checkpointing and other.checkpointing
    assert other.memory.kept < plan.memory.kept / 2 and other.flops > 1.2 * plan.flops


def test_mixed_precision_keeps_less_and_a_gpu_norms_in_float32():
    kept = {
        (device, precision): training_memory(*stage(), 16, 8, Kernels(device, precision))[0]
        for device in ("cuda", "cpu")
        for precision in (None, torch.bfloat16)
    }
    assert kept["cpu", torch.bfloat16] < kept["cuda", torch.bfloat16] < kept["cuda", None]


def test_the_moments_are_adamws():
    from composer.training.stage import StageTraining

    denoiser, conds = stage("cpu")
    model = StageTraining(denoiser, dict(conds.named()), size=8)
    optimizer = model.configure_optimizers()["optimizer"]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if x.ndim)
    assert held == estimate_needs(*stage(), 8, 8, 2).configured.memory.moments


MEASURE = """
import sys
import torch
from tests.training.test_doctor import CASES, stage
torch.set_num_threads(1)
def now(key):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
for precision, checkpointing in CASES:
    denoiser, conds = stage("cpu", checkpointing=checkpointing)
    for p in (*denoiser.parameters(), *conds.parameters()):
        p.grad = torch.zeros_like(p)
    def step(n):
        reps, size = {name: c.example(n, (32, 32)) for name, c in conds.named()}, (32, 32)
        image, noise = torch.zeros(n, 3, 32, 32), torch.zeros(n, 3, 32, 32)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
            loss = denoiser.loss(image, conds(reps, size), torch.ones(n), noise).mean()
        loss.backward()
    step(1)
    open("/proc/self/clear_refs", "w").write("5")
    before = now("VmRSS")
    step(16)
    print(now("VmHWM") - before)
"""
CASES = [(None, False), (torch.bfloat16, False), (None, True), (torch.bfloat16, True)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads how much memory a process took from Linux")
def test_a_process_takes_as_much_memory_as_estimated():
    """Its allocator is told to give back at once what is released: what it hoards is not the model's."""
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, env=os.environ | at_once, capture_output=True, text=True, check=True)
    took = [int(line) for line in done.stdout.split()]
    said = [training_memory(*stage(checkpointing=c), 32, 16, Kernels("cpu", p))[1] for p, c in CASES]
    assert said == pytest.approx(took, rel=0.15) and said[0] > 2 * said[2]


def test_what_each_of_several_devices_needs_by_hand():
    """A network of 10,000 trained bytes of weights, 300 at work, 70 of decomposers."""
    plans = Strategies(static=60_000, working=3_000, copied=10_000, buckets=10_000, gathered=500, decomposers=70)
    assert plans.alone == 60_000 + 10_000 + 70 and plans.ddp == plans.alone + 10_000
    assert plans.sharded(8) == 60_000 // 8 + 3_000 + 500 + 70  # the copy is divided, too: 1,250, less than the work
    assert plans.sharded(2) == 30_000 + 5_000 + 500 + 70
    assert plans.fewest(plans.sharded(8)) == 8 and plans.fewest(plans.sharded(8) - 1) == 16
    assert plans.advise(80_070) == "one, or any number with ddp"
    assert plans.advise(80_069) == "one, or 2 or more with fully_shard"
    assert plans.advise(plans.sharded(4)) == "4 or more with fully_shard"
    assert plans.advise(3_500) == "none: take a smaller batch, or checkpointing"


def test_gathered_layers_by_hand():
    network = nn.Sequential(nn.Linear(256, 256), nn.Linear(8, 8), nn.Conv2d(64, 128, 3))
    small, large = 4 * (8 * 8 + 8), 4 * (64 * 128 * 9 + 128)
    assert gathered_bytes([network]) == 2 * (small + 2 * large)


def test_sampling_is_guided_in_one_batch_and_prepared_once():
    (flops, peak), (twice, higher) = (sampling_step(*stage(), 32, rows, Kernels("cuda", None)) for rows in (1, 2))
    assert twice == 2 * flops and 1.7 * peak < higher < 2.1 * peak
    _, training = training_memory(*stage(), 32, 2, Kernels("cuda", None))
    forward, _ = training_flops(*stage(), 32, 2)
    assert higher < training and twice < forward  # no encoding of the conditions in it


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["composer"])


def test_command_reads_a_configuration(quiet, tmp_path, capsys):
    file = tmp_path / "report.json"
    assert main(["doctor", "configs/tiny.yaml", "--batch", "3", "--json", str(file), "--let.size", "16"]) == 0
    shown, report = capsys.readouterr().out, json.loads(file.read_text())
    assert (report["size"], report["side"], report["batch"], report["precision"]) == (16, 16, 3, "32-true")
    parameters, memory = report["network"] + sum(report["conditions"].values()), report["configured"]["memory"]
    assert report["parameters"] == parameters and memory.pop("total") == sum(memory.values())
    assert f" {parameters:,} " in shown and "training on 3 images" in shown and "checkpointing" in shown
    assert memory["weights"] == 4 * parameters
    several = report["strategies"]
    assert several["copied"] == several["buckets"] == memory["gradients"] and "devices of 24 GB that this fits" in shown
    assert several["ddp"] - several["buckets"] == several["alone"] >= sum(memory.values())
    assert report["decomposers"]["palette"] | {"flops": 0} == {
        "parameters": 0, "weights": report["decomposer_weights"], "flops": 0, "remark": ""
    }  # fmt: skip
    disk = report["disk"]
    assert disk["folder"] == "runs/tiny" and disk["checkpoint"] == 4 * 4 * parameters and disk["most"] == 3
    assert disk["needed"] == 3 * disk["checkpoint"] and disk["fits"] and "do not fit" not in shown


def test_command_warns_of_checkpoints_that_do_not_fit(quiet, tmp_path, capsys, monkeypatch):
    """For a run in a folder that is not there yet, and is not made."""
    root, file = tmp_path / "new" / "run", tmp_path / "report.json"
    free = SimpleNamespace(free=10_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free if path == tmp_path else pytest.fail(f"asked of {path}"))
    args = ["configs/tiny.yaml", "--batch", "1", "--json", str(file), "--let.size", "16", "--trainer.max_steps", "100"]
    args += ["--checkpoints.every", "10", "--checkpoints.keep_every", "20", "--trainer.default_root_dir", str(root)]
    assert main(["doctor", *args]) == 0 and not root.exists()
    disk = json.loads(file.read_text())["disk"]
    assert disk["most"] == 8 and disk["needed"] == 8 * disk["checkpoint"] > disk["free"] == 10_000_000
    assert not disk["fits"] and "The checkpoints do not fit" in capsys.readouterr().out


def test_checkpoints_that_are_there_need_no_more_room(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(bytes(1000))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2000))
    found = [disk_of(tmp_path, 1000, most) for most in (3, 4, None)]
    assert [(disk.needed, disk.fits) for disk in found] == [(2000, True), (3000, False), (2000, True)]


def real_flops(step):
    """Of a step's forward pass and in total, on real tensors; `step` gives the loss."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = step()
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


def autoencoder_loss_of(made, image):
    mean, log_variance = made.moments(image)
    found = made.reconstruct(mean + log_variance.exp() * torch.randn_like(mean))
    return autoencoder_loss(image, found, mean, log_variance).mean()


NETWORK = "--model.init_args.autoencoder.init_args"
OTHERS: dict[str, Any] = {
    "scenes_autoencoder": (
        [f"{NETWORK}.width=8", f"{NETWORK}.multipliers=[1, 2]", f"{NETWORK}.groups=4", "--let.crop=32"],
        lambda: Autoencoder(width=8, multipliers=[1, 2], blocks=1, groups=4),
        lambda made: autoencoder_loss_of(made, torch.rand(1, 3, 32, 32)),
        32,
    ),
    "scenes_dvae": (
        [f"{NETWORK}.codes=20", f"{NETWORK}.width=8", f"{NETWORK}.start=8"],
        lambda: DVAE(codes=20, width=8, start=8, blocks=1, levels=3),
        lambda made: dvae_loss(made, torch.rand(1, 3, 64, 64), 1.0, 1.0, torch.Generator()).total.mean(),
        64,
    ),
    "scenes_dalle": (
        [
            "--let.length=7",
            "--model.init_args.tokens.init_args.width=24",
            "--model.init_args.tokens.init_args.layers=2",
        ],
        lambda: ImageTokens(24, 2, 3, 84, 512, 7, 16, 16, 11),
        lambda made: made.loss(
            torch.zeros(1, 7, dtype=torch.long),
            torch.zeros(1, 16, 16, dtype=torch.long),
            torch.ones(1, dtype=torch.bool),
        ).mean(),
        64,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_trainings_of_other_networks_are_estimated(quiet, name, tmp_path, capsys):
    """FLOPs as torch counts them on real tensors; weights, gradients and moments from the network itself."""
    args, build, step, side = OTHERS[name]
    if name == "scenes_dalle":
        dvae = DVAE(codes=512, width=8, start=8, blocks=1, levels=3)
        dvae.save(tmp_path / "dvae")
        args = [*args, f"--model.init_args.autoencoder={tmp_path / 'dvae'}"]
    file = tmp_path / "found.json"
    assert main(["doctor", f"configs/{name}.yaml", "--batch", "3", "--json", str(file), *args]) == 0
    found, made = json.loads(file.read_text()), build()
    count = sum(p.numel() for p in made.parameters())
    assert (found["parameters"], found["trainable"], found["side"], found["batch"]) == (count, count, side, 3)
    assert (found["configured"]["forward_flops"], found["configured"]["flops"]) == real_flops(lambda: step(made))
    memory, totals = found["configured"]["memory"], found["configured"]["totals"]
    assert (memory["gradients"], memory["moments"], memory["average"]) == (4 * count, 8 * count, 4 * count)
    assert memory["weights"] == sum(t.nbytes for t in (*made.parameters(), *made.buffers()))
    assert totals["1"] < totals["3"] == memory["total"] < totals["48"]
    assert found["otherwise"] is None and found["sampling"] is None
    if name == "scenes_dalle":
        assert found["codec"] == sum(p.numel() for p in dvae.parameters())
        assert found["encoding_flops"] == real_flops(lambda: dvae.encoder(torch.rand(1, 3, 64, 64)).sum())[0]
    says = capsys.readouterr().out
    assert f"{count:,}" in says and ("perceptual distance" in says) == (name == "scenes_autoencoder")


def test_a_discriminator_is_estimated_too(quiet, tmp_path):
    args = ["doctor", "configs/scenes_autoencoder.yaml", "--batch", "2", "--json", str(tmp_path / "found.json")]
    assert main([*args, "--model.init_args.discriminator=PatchDiscriminator"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    judge, image = PatchDiscriminator(), torch.rand(1, 3, 64, 64)
    assert found["parameters"] == 1_318_311 + sum(p.numel() for p in judge.parameters())
    assert main(args) == 0
    alone = json.loads((tmp_path / "found.json").read_text())
    more = found["configured"]["forward_flops"] - alone["configured"]["forward_flops"]
    judged, _ = real_flops(lambda: judge(image).mean())
    assert more > 3 * judged  # of the reconstruction, twice, and of the image; and the adaptive weight's gradients


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["configs/scenes_clip.yaml"],
            "AutoencoderTraining, DVAETraining or ImageTokensTraining, found one of ClipTraining",
        ),
        (["configs/tiny.yaml", "--trainer.precision", "64-true"], "expected a precision of 32-true, bf16-mixed"),
        (["configs/tiny.yaml", "--batch", "0"], "expected a whole number from 1"),
        (["configs/tiny.yaml", "--let.size", "18"], "multiples of 4"),
    ],
)
def test_mistakes_are_explained(quiet, capsys, args, says):
    assert main(["doctor", *args]) in (1, 2)
    assert says in capsys.readouterr().err
