"""The command for autoencoders: ``evaluate-autoencoder``; light."""

from pathlib import Path
from typing import Annotated

from composer.commands.signature import Value
from composer.commands.values import Data, Device, Json, Network, Pair, Rows, Side
from composer.terminal import advancing, say


def evaluate_autoencoder(
    autoencoder: Path,
    *,
    data: Data = "scenes:val",
    count: Pair = 256,
    size: Side = 256,
    clip: Annotated[str, Value(metavar="WEIGHTS")] = "asset:scenes_clip_swaps",
    rows: Rows = 8,
    device: Device | None = None,
    json: Json | None = None,
    out: Path | None = None,
    allow_network: Network = False,
) -> None:
    """Measure an autoencoder by its reconstructions: PSNR, and KID in the features of a CLIP.

    Args:
        autoencoder: the folder of a KL autoencoder or a dVAE
        count: number of images
        clip: weights of the CLIP whose features KID compares (default: that of Scenes)
        out: folder to write a sheet to, autoencoder.png: images above their reconstructions

    Examples:
        models/scenes_autoencoder --data scenes:val --count 256 --json autoencoder.json
        models/dvae --data photos/val --size 64 --out out/dvae
    """
    from composer.devices import pick_device
    from composer.evaluation.autoencoder import measure_reconstructions
    from composer.evaluation.metrics import read_by
    from composer.evaluation.samples import open_sample
    from composer.images.sheet import save_png, sheet
    from composer.networks.stored import Stored
    from composer.storage.files import write_json
    from composer.storage.finding import find_model
    from composer.storage.folder import digest_of
    from decomposers import Semantics

    on = pick_device(device)
    path = find_model(autoencoder, allow_network)
    measured, reader = Stored.load(path).to(on), Semantics(weights=clip).to(on)
    with advancing("encoding and decoding", count) as advance:
        found = measure_reconstructions(
            measured, open_sample(data, count, size), read_by(reader), rows, device=on, progress=advance
        )
    say(found.markdown())
    if out is not None:
        images, reconstructions = (list(row) for row in zip(*found.examples, strict=True))
        save_png(out / "autoencoder.png", sheet([images, reconstructions], ["image", "reconstruction"]))
        say(f"see {out / 'autoencoder.png'}")
    if json is not None:
        about = {"data": data, "count": count, "size": size, "clip": clip, "autoencoder": digest_of(path)}
        write_json(json, found.json() | {"about": about})
