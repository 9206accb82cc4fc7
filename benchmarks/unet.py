"""Our U-Net beside diffusers' `UNet2DConditionModel` in its IF shape, at equal parameters.

Each network has about 80M parameters, width 96 x (1, 2, 3, 4), heads of 48 channels, and reads 64 px images with 128
context tokens of 512 channels. One round runs every network forward, then forward and backward, in fp32 and under bf16
autocast; rounds repeat, and the rows give medians. On a CPU the time is that of the process, on one thread, so that
what else runs disturbs little. The share is that of the rate of a large convolution, probed before every call:

    python benchmarks/unet.py --json benchmarks/results/unet.json
"""

import argparse
import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from composer.conditioning import Conditioning
from composer.unet import UNet

SIZE, TOKENS, TOKEN_DIM, WIDTH, HEAD_DIM = 64, 128, 512, 96, 48
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DIRECTIONS = "forward", "forward+backward"


class Ours(nn.Module):
    """Our network behind the same call as diffusers'."""

    def __init__(self, **plan: object):
        super().__init__()
        self.unet = UNet(width=WIDTH, head_dim=HEAD_DIM, vector_dim=4 * WIDTH, spatial_dim=0, **plan)

    def forward(self, x: Tensor, level: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, level, Conditioning(tokens=tokens))


class Diffusers(nn.Module):
    """The published configuration of IF's first stage, narrower."""

    def __init__(self) -> None:
        from diffusers import UNet2DConditionModel

        super().__init__()
        attends = "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"
        self.unet = UNet2DConditionModel(
            sample_size=SIZE,
            in_channels=3,
            out_channels=3,
            act_fn="gelu",
            attention_head_dim=HEAD_DIM,
            block_out_channels=[WIDTH * m for m in (1, 2, 3, 4)],
            layers_per_block=3,
            cross_attention_dim=4 * WIDTH,
            cross_attention_norm="group_norm",
            down_block_types=["ResnetDownsampleBlock2D", *[attends[0]] * 3],
            up_block_types=[*[attends[1]] * 3, "ResnetUpsampleBlock2D"],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            encoder_hid_dim=TOKEN_DIM,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text",
            addition_embed_type_num_heads=8,
            resnet_time_scale_shift="scale_shift",
            time_embedding_act_fn="gelu",
            mid_block_scale_factor=2**0.5,
            resnet_out_scale_factor=2**0.5,
        )

    def forward(self, x: Tensor, level: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, 1000 * level, tokens).sample


def networks(device: torch.device) -> dict[str, nn.Module]:
    shifted = {"blocks": (1, 2, 3, 4), "attention": (4, 8), "residual_resampling": False, "skip_scale": 0.5**0.5}
    nets: dict[str, nn.Module] = {
        "ours, ADM plan": Ours(),
        "ours, shifted plan": Ours(**shifted),
        "diffusers, IF shape": Diffusers(),
        "diffusers, channels_last": Diffusers().to(memory_format=torch.channels_last),
    }
    for net in nets.values():
        for parameter in net.parameters():
            if not parameter.any():  # zero-initialised ends would make the gradients before them zero
                nn.init.normal_(parameter, std=0.02)
        net.to(device).train()
    return nets


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
    with torch.set_grad_enabled(backward), torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32):
        loss = net(*inputs).float().square().mean()
    if backward:
        loss.backward()
        net.zero_grad()


def gigaflops(net: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], direction: str) -> float:
    """Counted in fp32 with plain matrix products, which the counter sees, whatever kernel runs later."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(net, inputs, torch.float32, direction)
    return counter.get_total_flops() / len(inputs[0]) / 1e9


def convolution_rate(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of a 3 x 3 convolution from 384 to 384 channels at 32 x 32."""
    x, weight = torch.randn(4, 384, 32, 32, device=device), torch.randn(384, 384, 3, 3, device=device)
    x, weight = (t.to(dtype, memory_format=torch.channels_last) for t in (x, weight))
    F.conv2d(x, weight, padding=1)
    return 2 * 4 * 384 * 384 * 9 * 32 * 32 / seconds(lambda: F.conv2d(x, weight, padding=1), device) / 1e9


def measure(batch: int, rounds: int, device: torch.device) -> list[dict[str, object]]:
    nets = networks(device)
    inputs = (
        torch.randn(batch, 3, SIZE, SIZE, device=device),
        torch.rand(batch, device=device),
        torch.randn(batch, TOKENS, TOKEN_DIM, device=device),
    )
    gflop = {(name, d): gigaflops(net, inputs, d) for name, net in nets.items() for d in DIRECTIONS}  # and warms up
    taken, rates = defaultdict(list), defaultdict(list)
    for _ in track(range(rounds), "rounds"):
        for label, dtype in DTYPES.items():
            for direction in DIRECTIONS:
                for name, net in nets.items():
                    rates[label].append(convolution_rate(dtype, device))
                    s = seconds(lambda n=net, t=dtype, d=direction: run(n, inputs, t, d), device)
                    taken[name, label, direction].append(s / batch)
    rows = []
    for (name, label, direction), times in taken.items():
        s = statistics.median(times)
        rows.append(
            {
                "name": name,
                "parameters": sum(p.numel() for p in nets[name].parameters()),
                "dtype": label,
                "direction": direction,
                "ms_per_image": round(1000 * s, 1),
                "gflop": round(gflop[name, direction], 1),
                "share": round(gflop[name, direction] / s / statistics.median(rates[label]), 2),
            }
        )
    return rows


def show(rows: list[dict[str, object]]) -> None:
    reference = {(r["dtype"], r["direction"]): r["ms_per_image"] for r in rows if r["name"] == "diffusers, IF shape"}
    table = Table("network", title=f"U-Nets at {SIZE} px")
    for column in ("parameters", "dtype", "direction", "ms an image", "GFLOP", "share", "speed-up"):
        table.add_column(column, justify="right")
    last = None
    for r in rows:
        if last not in (None, group := (r["dtype"], r["direction"])):
            table.add_section()
        last = group
        cells = f"{r['parameters'] / 1e6:.1f}M", r["dtype"], r["direction"], f"{r['ms_per_image']:.0f}"
        speed_up = f"{reference[group] / r['ms_per_image']:.2f}"
        table.add_row(r["name"], *cells, f"{r['gflop']:.0f}", f"{r['share']:.2f}", speed_up)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--quick", action="store_true", help="one round of one image: a few seconds, and noisy")
    parser.add_argument("--device", default="cpu", help="cpu (one thread) or cuda")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, rounds = (1, 1) if args.quick else (4, 5)
    rows = measure(batch, rounds, torch.device(args.device))
    show(rows)
    if args.json:
        machine = {"processor": platform.machine(), "device": args.device, "torch": torch.__version__, "threads": 1}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, "batch": batch, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
