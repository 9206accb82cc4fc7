"""Our U-Nets beside others' of equal parameters: bases at 64 px, upsamplers from 64 to 256 px.

At 64 px every network has about 80M parameters, width 96 x (1, 2, 3, 4), and reads 128 context tokens of 512 channels.
At 256 px every network has 47M to 48.5M parameters and reads the noisy image beside the small one, and such tokens:

- ADM plan: ADM's for 256 px (Dhariwal and Nichol 2021: multipliers 1, 1, 2, 2, 4, 4, two blocks each), attending at
  the lowest level only;
- efficient: Imagen's for 64 -> 256 (Saharia et al. 2022, appendix B) a quarter as wide, with 10 instead of 8 blocks at
  the lowest level to have as many parameters; wider: fewer blocks instead;
- diffusers, IF-II shape: the published configuration of IF-II-L a fifth as wide;
- imagen-pytorch: its `SRUnet256` a quarter as wide, in its own memory format and in channels_last, neither of which is
  always the faster. The package serves nothing else here; without it these rows are left out:

    pip install -e '.[dev,bench]'
    python benchmarks/unet.py --json benchmarks/results/unet.json

One round runs every network forward, then forward and backward, in fp32 and under bf16 autocast; rounds repeat, and the
rows give medians, and how far the slowest is from the fastest. On a CPU the time is that of the process, on one thread,
so that what else runs disturbs little (seven minutes in all). The share is that of the rate of a large convolution,
probed before every call.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from composer.conditioning import Conditioning
from composer.networks.unet import UNet

TOKENS, TOKEN_DIM = 128, 512
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DIRECTIONS = "forward", "forward+backward"
Row = dict[str, Any]


class Ours(nn.Module):
    """Our network behind the call that all share; an upsampler's small image comes behind the noisy one's channels."""

    def __init__(self, channels: int, **plan: Any):
        super().__init__()
        self.unet = UNet(spatial_dim=channels - 3, token_dim=TOKEN_DIM, **plan)

    def forward(self, x: Tensor, level: Tensor, tokens: Tensor) -> Tensor:
        clean: Tensor = self.unet(x[:, :3], level, Conditioning(tokens=tokens, spatial=x[:, 3:]))
        return clean


class Diffusers(nn.Module):
    """What the published configurations of IF's stages I and II share, narrower; the plan is the stage's."""

    def __init__(self, channels: int, levels: int, attending: int, **plan: Any):
        from diffusers import UNet2DConditionModel

        super().__init__()
        plain = levels - attending
        self.unet = UNet2DConditionModel(
            in_channels=channels,
            out_channels=3,
            act_fn="gelu",
            cross_attention_norm="group_norm",
            down_block_types=["ResnetDownsampleBlock2D"] * plain + ["SimpleCrossAttnDownBlock2D"] * attending,
            up_block_types=["SimpleCrossAttnUpBlock2D"] * attending + ["ResnetUpsampleBlock2D"] * plain,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            encoder_hid_dim=TOKEN_DIM,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text",
            addition_embed_type_num_heads=8,
            resnet_time_scale_shift="scale_shift",
            time_embedding_act_fn="gelu",
            mid_block_scale_factor=2**0.5,
            resnet_out_scale_factor=2**0.5,
            **plan,
        )

    def forward(self, x: Tensor, level: Tensor, tokens: Tensor) -> Tensor:
        sample: Tensor = self.unet(x, 1000 * level, tokens, class_labels=1000 * level).sample
        return sample


class ImagenPytorch(nn.Module):
    """Its `SRUnet256`; the lists of blocks, multipliers and attention are its defaults, which are Imagen's."""

    def __init__(self, **plan: Any):
        from transformers import T5Config

        super().__init__()
        # Importing the package asks the hub how wide T5 base is; we pass our own width.
        with mock.patch.object(T5Config, "from_pretrained", lambda _: T5Config(d_model=768)):
            from imagen_pytorch import SRUnet256
        self.unet = SRUnet256(lowres_cond=True, text_embed_dim=TOKEN_DIM, **plan)

    def forward(self, x: Tensor, level: Tensor, tokens: Tensor) -> Tensor:
        small = {"lowres_cond_img": x[:, 3:], "lowres_noise_times": level}
        clean: Tensor = self.unet(x[:, :3], level, text_embeds=tokens, **small)
        return clean


@dataclass(frozen=True)
class Comparison:
    """Networks of equal parameters at one size; speed-ups are over the network named `reference`."""

    size: int
    batch: int
    channels: int
    reference: str
    networks: dict[str, Callable[[], nn.Module]]
    probed: int = 4  # images in the probe of the processor's rate

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.randn(self.batch, self.channels, self.size, self.size, device=device),
            torch.rand(self.batch, device=device),
            torch.randn(self.batch, TOKENS, TOKEN_DIM, device=device),
        )


def bases() -> Comparison:
    ours = {"channels": 3, "width": 96, "head_dim": 48, "vector_dim": 384}
    shifted = {"blocks": (1, 2, 3, 4), "attention": (4, 8), "residual_resampling": False, "skip_scale": 0.5**0.5}
    theirs = {
        "sample_size": 64,
        "block_out_channels": [96, 192, 288, 384],
        "layers_per_block": 3,
        "attention_head_dim": 48,
        "cross_attention_dim": 384,
    }

    def diffusers() -> nn.Module:
        return Diffusers(channels=3, levels=4, attending=3, **theirs)

    return Comparison(
        size=64,
        batch=4,
        channels=3,
        reference="diffusers, IF shape",
        networks={
            "ours, ADM plan": lambda: Ours(**ours),
            "ours, shifted plan": lambda: Ours(**ours, **shifted),
            "diffusers, IF shape": diffusers,
            "diffusers, channels_last": lambda: diffusers().to(memory_format=torch.channels_last),
        },
    )


def upsamplers() -> Comparison:
    efficient = {
        "channels": 6,
        "multipliers": (1, 2, 4, 8),
        "attention": (16,),
        "attend_once": True,
        "residual_resampling": False,
        "skip_scale": 0.5**0.5,
        "first_stride": 2,
    }
    adm = {"width": 76, "head_dim": 76, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (32,)}
    theirs = {
        "sample_size": 256,
        "block_out_channels": [32, 64, 128, 192, 256],
        "layers_per_block": [2, 2, 3, 5, 5],
        "attention_head_dim": 32,
        "cross_attention_dim": 256,
        "time_embedding_dim": 256,
        "class_embed_type": "timestep",
        "resnet_skip_time_act": True,
    }

    networks: dict[str, Callable[[], nn.Module]] = {
        "ours, ADM plan": lambda: Ours(channels=6, vector_dim=304, **adm),
        "ours, efficient": lambda: Ours(width=32, head_dim=32, vector_dim=128, blocks=(2, 4, 8, 10), **efficient),
        "ours, efficient, wider": lambda: Ours(width=40, head_dim=40, vector_dim=160, blocks=(1, 2, 4, 6), **efficient),
        "diffusers, IF-II shape": lambda: Diffusers(channels=6, levels=5, attending=2, **theirs),
    }
    if importlib.util.find_spec("imagen_pytorch"):
        networks["imagen-pytorch"] = lambda: ImagenPytorch(dim=32)
        networks["imagen-pytorch, channels_last"] = lambda: ImagenPytorch(dim=32).to(memory_format=torch.channels_last)
    else:
        print("imagen-pytorch is not installed: no rows of its SRUnet256 (pip install -e '.[dev,bench]')")
    return Comparison(size=256, batch=1, channels=6, reference="ours, ADM plan", networks=networks)


def reduced(comparison: Comparison) -> Comparison:
    """The first network and the reference, on one image of a quarter the side: to try this script with."""
    kept = {name: build for name, build in comparison.networks.items() if name == comparison.reference}
    kept |= dict([next(iter(comparison.networks.items()))])
    return replace(comparison, size=comparison.size // 4, batch=1, probed=1, networks=kept)


def awake(net: nn.Module) -> nn.Module:
    """Zero-initialised ends would make the gradients before them zero."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net.train()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def run(net: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype, direction: str) -> None:
    backward = direction == "forward+backward"
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(inputs[0].device.type, dtype)
    with torch.set_grad_enabled(backward), autocast:
        loss = net(*inputs).float().square().mean()
    if backward:
        loss.backward()
        net.zero_grad()


def gigaflops(build: Callable[[], nn.Module], comparison: Comparison) -> dict[str, float]:
    """An image's, by direction: fp32 with plain matrix products, which the counter sees, whatever kernel runs later."""
    with torch.device("meta"):
        net, inputs = build(), comparison.inputs(torch.device("meta"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = net(*inputs).square().mean()
        forward = counter.get_total_flops()
        loss.backward()
    counts = (forward, counter.get_total_flops())
    return {d: count / comparison.batch / 1e9 for d, count in zip(DIRECTIONS, counts, strict=True)}


def convolution_rate(dtype: torch.dtype, device: torch.device, b: int) -> float:
    """GFLOP/s of a 3 x 3 convolution from 384 to 384 channels at 32 x 32."""
    x, weight = torch.randn(b, 384, 32, 32, device=device), torch.randn(384, 384, 3, 3, device=device)
    x, weight = (t.to(dtype, memory_format=torch.channels_last) for t in (x, weight))
    F.conv2d(x, weight, padding=1)
    return 2 * b * 384 * 384 * 9 * 32 * 32 / seconds(lambda: F.conv2d(x, weight, padding=1), device) / 1e9


def measure(comparison: Comparison, rounds: int, device: torch.device) -> list[Row]:
    nets = {name: awake(build().to(device)) for name, build in comparison.networks.items()}
    inputs = comparison.inputs(device)
    gflop = {name: gigaflops(build, comparison) for name, build in comparison.networks.items()}
    taken, rates = defaultdict(list), defaultdict(list)
    for _ in track(range(rounds), f"rounds at {comparison.size} px"):
        for label, dtype in DTYPES.items():
            for direction in DIRECTIONS:
                for name, net in nets.items():
                    rates[label].append(convolution_rate(dtype, device, comparison.probed))
                    s = seconds(partial(run, net, inputs, dtype, direction), device)
                    taken[name, label, direction].append(s / comparison.batch)
    rows = []
    for (name, label, direction), times in taken.items():
        s = statistics.median(times)
        reference = statistics.median(taken[comparison.reference, label, direction])
        rows.append(
            {
                "size": comparison.size,
                "batch": comparison.batch,
                "name": name,
                "parameters": sum(p.numel() for p in nets[name].parameters()),
                "dtype": label,
                "direction": direction,
                "ms_per_image": round(1000 * s, 1),
                "spread": round((max(times) - min(times)) / s, 2),
                "gflop": round(gflop[name][direction], 1),
                "share": round(gflop[name][direction] / s / statistics.median(rates[label]), 2),
                "speed_up": round(reference / s, 2),
            }
        )
    return rows


def show(rows: list[Row], reference: str) -> None:
    table = Table("network", title=f"U-Nets at {rows[0]['size']} px; speed-ups over {reference}")
    for column in ("parameters", "dtype", "direction", "ms an image", "spread", "GFLOP", "share", "speed-up"):
        table.add_column(column, justify="right")
    last = None
    for r in rows:
        if last not in (None, group := (r["dtype"], r["direction"])):
            table.add_section()
        last = group
        cells = f"{r['parameters'] / 1e6:.1f}M", r["dtype"], r["direction"], f"{r['ms_per_image']:.0f}"
        figures = f"{r['spread']:.0%}", f"{r['gflop']:.0f}", f"{r['share']:.2f}", f"{r['speed_up']:.2f}"
        table.add_row(r["name"], *cells, *figures)
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], choices=[64, 256], help="which tables")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that the medians are over")
    parser.add_argument("--device", default="cpu", help="cpu (one thread) or cuda")
    parser.add_argument("--quick", action="store_true", help="two networks, one image of a quarter the side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for comparison in (c() for size, c in ((64, bases), (256, upsamplers)) if size in args.sizes):
        if args.quick:
            comparison = reduced(comparison)
        part = measure(comparison, args.rounds, torch.device(args.device))
        show(part, comparison.reference)
        rows += part
    if args.json:
        machine = {"processor": platform.machine(), "device": args.device, "torch": torch.__version__, "threads": 1}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, "rounds": args.rounds, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
