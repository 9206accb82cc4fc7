"""Trains a small CLIP from scratch, so that semantics and agreement with a caption need no download."""

import math
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from composer.decomposition import Batch
from composer.scenes import PHRASES
from composer.storage.files import write_atomically, write_json
from composer.storage.pretrained import locate
from composer.training.muon import Muon
from composer.training.safety import SafeTraining
from composer.training.schedule import over_whole_training
from composer.training.stage import stream

GALLERY = 256
"""Number of candidates among which validation looks for the right one."""

GROUPS = 4
"""Number of groups of like length in which captions are encoded."""

HOTTEST = math.log(100)
"""Largest logarithm of the inverse temperature (Radford et al. 2021, section 2.5)."""


class ClipTraining(SafeTraining):
    """Trains open_clip's CLIP to tell which caption goes with which image (Radford et al. 2021, figure 3).

    Reads ``image`` and ``representations["tokens"]``, so the data module wants a decomposer of that name. Where a batch
    has ``swaps``, false captions of each image (`SceneImages` gives them on request), images have to be told from these
    as well (NegCLIP, Yuksekgonul et al. 2023). Where it has ``phrases``, images also have to be nearer to the phrases
    that are true of them than to the others.

    On several devices all images and captions of a step are told apart, as if they were one batch (of a tower with
    batch norm, with ``--trainer.sync_batchnorm true``).

    Args:
        embed_dim: Width of the space that images and captions share.
        vision: The image tower.
        text: The text tower; `vocab_size` is that of the tokens.
        words: The text file whose words the tokens count (see `locate`); it goes with the weights.
        learning_rate: Peak learning rate of AdamW; linear warm-up, then a cosine to zero.
        muon_rate: Peak learning rate of Muon for the image tower's convolutions except the first, such as 0.02; None
            trains them by AdamW as well.
        warmup: Steps of the warm-up, of both rates.
        scale: Inverse temperature at the start; CLIP's is 1 / 0.07. Its logarithm is learnt, but moves by about a
            learning rate per step, and swaps need a high one.
        weight_decay: AdamW's weight decay, of matrices alone.
        shift: Images move by up to so many pixels in either direction, their edges repeated.
        noise: Largest standard deviation of the noise on images, in image units (the range is 2).
        out: Folder that gets the weights at the end, as a model of open_clip's; None writes nothing.
    """

    def __init__(
        self,
        vision: CLIPVisionCfg,
        text: CLIPTextCfg,
        words: str,
        embed_dim: int = 128,
        learning_rate: float = 2e-3,
        muon_rate: float | None = None,
        warmup: int = 200,
        scale: float = 1 / 0.07,
        weight_decay: float = 0.1,
        shift: int = 3,
        noise: float = 0.1,
        out: str | None = None,
    ):
        super().__init__()
        if muon_rate is not None and muon_rate <= 0:
            raise ValueError(f"expected muon_rate > 0, or null for AdamW alone, found {muon_rate}")
        towers = deepcopy(vision), deepcopy(text)
        self.network = CLIP(embed_dim, *towers, init_logit_scale=math.log(scale)).to(memory_format=torch.channels_last)
        self.image_size = vision.image_size
        self.architecture = {"embed_dim": embed_dim, "vision_cfg": _changed(vision), "text_cfg": _changed(text)}
        self.words = locate(words, wanted="a text file with one word per line", who="ClipTraining")
        self.learning_rate, self.muon_rate = learning_rate, muon_rate
        self.warmup, self.weight_decay = warmup, weight_decay
        self.shift, self.noise, self.out = shift, noise, out
        self._found: list[tuple[Tensor, Tensor]] = []
        self._sample: tuple[Tensor, Tensor] | None = None

    def setup(self, stage: str) -> None:
        """Compares the tokens with the text tower.

        Raises:
            ValueError: float16 was asked for, there are no tokens, or they count other words.
        """
        super().setup(stage)
        decomposition = self.trainer.datamodule.decomposition
        if "tokens" not in decomposition:
            raise ValueError(f"expected a decomposer named tokens, found {', '.join(decomposition) or 'none'}")
        size = int(decomposition["tokens"]({"caption": ["a"]})[..., 0].max()) + 1  # the end is the highest id
        if size != self.network.vocab_size:
            raise ValueError(f"the tokens have {size} ids, the text tower has vocab_size={self.network.vocab_size}")

    def training_step(self, batch: Batch, _: int) -> Tensor:
        generators = [stream("disturb", seed) for seed in batch["seed"].tolist()]
        image = disturb(batch["image"], self.shift, self.noise, generators)
        features, (text, false, phrases) = self._read(image, batch)
        scale = self.network.logit_scale.exp()
        features, text, false = (self._of_all(rows) for rows in (features, text, false))
        loss = contrastive_loss(features, text, scale, false)
        if len(phrases):
            named = phrase_loss(features, phrases, self._of_all(batch["phrases"]), scale)
            self.log("train/phrases", named)
            loss = loss + named
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _of_all(self, rows: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "m ..."]:
        """The rows of all devices, as many of each, in their order; the gradient goes back to where they came from."""
        if self.trainer.world_size == 1:
            return rows
        joint: Tensor = self.all_gather(rows, sync_grads=rows.is_floating_point())
        return joint.flatten(0, 1)

    def _read(self, image: Float[Tensor, "b 3 h w"], batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encodes images, and captions, all swaps (a row's together) and phrases; none are (0 d)."""
        tokens: Tensor = batch["representations"]["tokens"]
        others = [caption for row in batch.get("swaps", ()) for caption in row], PHRASES if "phrases" in batch else ()
        read = self.trainer.datamodule.decomposition["tokens"]
        more = [read({"caption": texts}).to(tokens.device) for texts in others if texts]
        features, text = self.encode(image, torch.cat([tokens, *more]))
        return features, torch.split(text, [len(tokens), *map(len, others)])

    def on_train_batch_end(self, *_: Any) -> None:
        self.network.logit_scale.data.clamp_(0, HOTTEST)

    def encode(
        self, image: Float[Tensor, "b 3 h w"], tokens: Int[Tensor, "m n 2"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "m d"]]:
        """Encodes images in [-1, 1] and captions, both to unit length; there may be more captions than images.

        Captions are read in groups of like length, and positions after a group's longest are left out: attention looks
        back only, so they change nothing.
        """
        lengths = tokens[..., 1].sum(1)
        order = lengths.argsort()
        with sdpa_kernel(SDPBackend.MATH):  # a CPU's other kernel is three times as slow back through few positions
            text = torch.cat(
                [self._sentence(tokens[rows, : int(lengths[rows[-1]]), 0]) for rows in order.chunk(GROUPS)]
            )
            features = self.network.encode_image(image.contiguous(memory_format=torch.channels_last))
        return F.normalize(features.float(), dim=1), F.normalize(text.float(), dim=1)[order.argsort()]

    def _sentence(self, ids: Int[Tensor, "m n"]) -> Float[Tensor, "m d"]:
        """Encodes captions up to their end, which has the highest id."""
        network, n = self.network, ids.shape[1]
        x = network.token_embedding(ids) + network.positional_embedding[:n]
        x = network.ln_final(network.transformer(x, attn_mask=network.attn_mask[:n, :n]))
        sentence: Tensor = x[torch.arange(len(x), device=x.device), ids.argmax(1)] @ network.text_projection
        return sentence

    def validation_step(self, batch: Batch, _: int) -> None:
        image, tokens = batch["image"], batch["representations"]["tokens"]
        features, (text, false, _phrases) = self._read(image, batch)
        self._found.append((features, text))
        self._sample = (image, tokens)
        if len(false):
            self.log(
                "val/swaps",
                tell_apart(features, text, false).float().mean(),
                prog_bar=True,
                batch_size=len(image),
                sync_dist=True,
            )

    def on_validation_epoch_end(self) -> None:
        """Logs retrieval among 256: how often an image's caption is found, and a caption's image."""
        world, total = self.trainer.world_size, len(self.trainer.datamodule.validation)
        found = [torch.cat(rows) for rows in zip(*self._found, strict=True)]
        self._found.clear()
        # Devices take items in turn, and the first ones again to fill up
        joint = [self._of_all(rows) for rows in found]
        image, text = (rows.reshape(world, -1, rows.shape[1]).transpose(0, 1).flatten(0, 1) for rows in joint)
        image, text = image[:total], text[:total]
        whole = len(image) // GALLERY * GALLERY or len(image)
        hits = [retrieval(image[i : i + GALLERY], text[i : i + GALLERY]) for i in range(0, whole, GALLERY)]
        for name, share in zip(("image_to_text", "text_to_image"), zip(*hits, strict=True), strict=True):
            self.log(f"val/{name}", sum(share) / len(share), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        muon = self._inner_convolutions() if self.muon_rate else []
        others = [p for p in self.parameters() if id(p) not in {id(weight) for weight in muon}]
        groups = [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw: dict[str, Any] = {"lr": self.learning_rate, "betas": (0.9, 0.98)}
        optimizer: torch.optim.Optimizer
        if self.muon_rate is None:
            optimizer = torch.optim.AdamW(groups, **adamw)
        else:
            optimizer = Muon(muon, groups, self.muon_rate, **adamw)
        return over_whole_training(self.warmup, int(self.trainer.estimated_stepping_batches)).drive(optimizer)

    def _inner_convolutions(self) -> list[nn.Parameter]:
        """The image tower's convolutions except the first, whose inputs are colours."""
        return [weight for weight in self.network.visual.parameters() if weight.ndim == 4][1:]

    def on_fit_start(self) -> None:
        self.started = time.monotonic()

    def on_fit_end(self) -> None:
        if self.out is not None and self.trainer.is_global_zero:
            self.save(Path(self.out))

    def save(self, folder: Path) -> None:
        """Writes ``open_clip_config.json``, ``open_clip_model.safetensors``, ``words.txt`` and ``README.md``.

        The weights are stored in float16 if that changes no number of a unit embedding by 1e-3 on the last validation
        batch. Each file replaces the old one whole.
        """
        error = self._half_error()
        state = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        if error < 1e-3:
            state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        facts = {"mean": [0.5] * 3, "std": [0.5] * 3}  # that is, it reads images in [-1, 1]
        config = {"model_cfg": self.architecture, "preprocess_cfg": facts}
        write_atomically(folder / "open_clip_model.safetensors", save(state))
        write_json(folder / "open_clip_config.json", config)
        write_atomically(folder / "words.txt", self.words.read_bytes())
        write_atomically(folder / "README.md", self._describe(error).encode())

    @torch.no_grad()
    def _half_error(self) -> float:
        """Largest change of a number in the last validation batch's embeddings by storing weights in float16."""
        if self._sample is None:
            return math.inf
        self.eval()
        exact, kept = self.encode(*self._sample), deepcopy(self.network.state_dict())
        self.network.half().float()
        error = max(float((a - b).abs().max()) for a, b in zip(exact, self.encode(*self._sample), strict=True))
        self.network.load_state_dict(kept)
        return error

    def _describe(self, error: float) -> str:
        metrics = self.trainer.callback_metrics
        stored = f"float16 (largest change of an embedding's number: {error:.0e})" if error < 1e-3 else "float32"
        return _PAGE.format(
            size=self.image_size,
            millions=sum(p.numel() for p in self.network.parameters()) / 1e6,
            stored=stored,
            images=len(self.trainer.datamodule.train),
            steps=self.trainer.global_step,
            batch=self.trainer.datamodule.batch_size,
            minutes=(time.monotonic() - self.started) / 60,
            device=self.device.type.upper(),
            count=len(self.trainer.datamodule.validation),
            gallery=min(GALLERY, len(self.trainer.datamodule.validation)),
            image_to_text=float(metrics["val/image_to_text"]),
            text_to_image=float(metrics["val/text_to_image"]),
        )


_PAGE = """# Scenes CLIP

A small CLIP (Radford et al. 2021) for pictures of {size} pixels a side, in open_clip's own format. It knows the words
of `words.txt` and nothing else of the world.

{millions:.2f} million parameters, stored in {stored}.
Trained from scratch on {images:,} rendered Scenes (split `train`) in {steps:,} steps of {batch}, {minutes:.0f} minutes
on one {device}, by `composer fit`.

How often the right one of {gallery} is found, on the {count:,} Scenes of the validation (split `val`):

| | top-1 |
|---|---|
| caption of an image | {image_to_text:.3f} |
| image of a caption | {text_to_image:.3f} |

`python benchmarks/clip.py FOLDER` measures whether it knows which colour belongs to which thing, and what stands where.

Code and weights: Apache-2.0.
"""


def _changed(config: CLIPVisionCfg | CLIPTextCfg) -> dict[str, Any]:
    """What of a tower's configuration isn't open_clip's default."""
    return {name: value for name, value in asdict(config).items() if value != getattr(type(config), name)}


def contrastive_loss(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    scale: Float[Tensor, ""],
    false: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric cross entropy of finding each image's caption and each caption's image in a batch.

    Args:
        image: Unit embeddings.
        text: Unit embeddings, row by row of the captions of `image`.
        scale: Inverse temperature.
        false: Unit embeddings of captions that are no image's, among which images have to find theirs as well.
    """
    with torch.autocast(image.device.type, enabled=False):  # the scale grows to 100, too much for 8 bits
        logits = scale * image.float() @ (text if false is None else torch.cat([text, false])).float().T
    rows = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits[:, : len(text)].T, rows)) / 2


def phrase_loss(
    image: Float[Tensor, "b d"], text: Float[Tensor, "p d"], true: Bool[Tensor, "b p"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Mean cross entropy of each phrase that is true of an image against all that are not.

    Args:
        image: Unit embeddings.
        text: Unit embeddings of the phrases.
        true: Which phrases are true of which image; at least one of some image.
        scale: Inverse temperature.
    """
    with torch.autocast(image.device.type, enabled=False):
        logits = scale * image.float() @ text.float().T
    others = logits.masked_fill(true, -torch.inf).logsumexp(1, keepdim=True)
    return F.softplus(others - logits)[true].mean()


def tell_apart(
    image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], false: Float[Tensor, "n d"]
) -> Bool[Tensor, " b"]:
    """Whether each image is nearer to its caption than to all false captions of it.

    Args:
        image: Unit embeddings.
        text: Unit embeddings of the captions.
        false: Unit embeddings of the false captions, as many for each image, all of an image together.
    """
    own = (image * text).sum(1, keepdim=True)
    others = torch.einsum("bd,bkd->bk", image, false.reshape(len(image), -1, false.shape[1]))
    return (own > others).all(1)


def retrieval(image: Float[Tensor, "b d"], text: Float[Tensor, "b d"]) -> tuple[float, float]:
    """Share of the images whose nearest caption is theirs, and of the captions whose nearest image is theirs."""
    cosine = image @ text.T
    rows = torch.arange(len(cosine), device=cosine.device)
    return float((cosine.argmax(1) == rows).float().mean()), float((cosine.argmax(0) == rows).float().mean())


def disturb(
    image: Float[Tensor, "b 3 h w"], shift: int, noise: float, generators: Sequence[torch.Generator]
) -> Float[Tensor, "b 3 h w"]:
    """Shifts images by some pixels and adds noise, each row by its own amount.

    Args:
        image: Images.
        shift: Furthest move along either axis, in pixels; edges are repeated.
        noise: Largest standard deviation of the noise.
        generators: What each row's amounts and noise are drawn from, on the CPU.
    """
    b, _, h, w = image.shape
    wide = F.pad(image, [shift] * 4, mode="replicate")
    moves = torch.stack([torch.randint(0, 2 * shift + 1, (2,), generator=g) for g in generators])
    top, left = moves.T.to(image.device)
    y, x = torch.arange(h, device=image.device), torch.arange(w, device=image.device)
    rows = torch.arange(b, device=image.device)[:, None, None]
    moved = wide.movedim(1, 3)[rows, (top[:, None] + y)[:, :, None], (left[:, None] + x)[:, None]].movedim(3, 1)
    grain = [torch.rand((), generator=g) * torch.randn(image.shape[1:], generator=g) for g in generators]
    return moved + noise * torch.stack(grain).to(image.device)
