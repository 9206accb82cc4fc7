"""The interface of priors: they draw image embeddings for captions, and are saved as folders."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import fill_captions
from composer.decomposition import Batch, Decomposer
from composer.diffusion.samplers import Progress
from composer.names import SEMANTICS as SEMANTICS
from composer.names import TEXT as TEXT
from composer.networks.transformer import CausalTransformer
from composer.storage.building import Buildable, build
from composer.storage.finding import find_model
from composer.storage.folder import PRIOR_FILE, read_model, write_model
from composer.storage.formats import check_prior
from composer.storage.hub import push_model
from composer.storage.loading import load_strictly, require_fit
from composer.storage.pretrained import fetching


class Prior(nn.Module, Buildable, ABC):
    """p(semantics | caption): draws CLIP image embeddings that go with a caption (unCLIP, section 2.2).

    A caption is encoded by the same CLIP: a sequence of word encodings, then the sentence's embedding, its first `dim`
    channels; the last channel is 1 where an entry is real. A dropped row and one without a caption are the same.
    Embeddings of images and of texts have length sqrt(dim), unless `scaled` is off.

    Args:
        dim: Width of CLIP's embeddings.
        caption_dim: Channels of an encoded caption, without the mask.
        width: Channels of the transformer.
        layers: Number of its blocks.
        heads: Attention heads of a block.
        length: Maximum number of words of a caption; 0 reads the text embedding alone, as Alibaba's prior does.
        guidance: Weight of classifier-free guidance while sampling; 1 is none.
        scaled: Whether embeddings have length sqrt(dim); False takes and gives them as CLIP makes them, as Karlo does.
        hidden: Channels between the two layers that project embeddings to tokens; 0 makes them one layer.
        null_length: Entries of the encoding that a dropped caption is read as, such as the empty caption's; 0 for none:
            it is read as a learned token. It is stored with the weights, and does not train.

    Attributes:
        encode: Encodes captions; set by `reads`.
        spec: The configuration that it was loaded from.
        sha256: Identifies the exact state that was loaded; empty for a prior that was never saved.
    """

    def __init__(
        self,
        dim: int,
        caption_dim: int,
        width: int,
        layers: int,
        heads: int,
        length: int = 77,
        guidance: float = 1.0,
        scaled: bool = True,
        hidden: int = 0,
        null_length: int = 0,
    ):
        super().__init__()
        self.dim, self.guidance, self.scaled = dim, guidance, scaled
        self.captions = CaptionTokens(dim, caption_dim, width, length, scaled, hidden, null_length)
        self.transformer = CausalTransformer(width, layers, heads)
        self.encode: Callable[[Batch], Tensor] | None = None
        self.spec: dict[str, Any] = {}
        self.sha256 = ""
        self._folder: Path | None = None
        self._network = True

    @abstractmethod
    def loss(
        self,
        semantics: Float[Tensor, "b d"],
        caption: Float[Tensor, "b n c"],
        keep: Bool[Tensor, " b"],
        generator: torch.Generator,
        among: tuple[int, int] | None = None,
    ) -> Float[Tensor, " b"]:
        """The training loss, per row.

        Args:
            semantics: Image embeddings.
            caption: Encoded captions.
            keep: False where a row's text is dropped, for guidance.
            generator: Of all random numbers, on the CPU.
            among: The first row's place among the rows of a step, and their number: each process of several draws for
                all of them and takes its own. None if these are all.
        """

    @abstractmethod
    def draw(
        self,
        caption: Float[Tensor, "b n c"],
        seeds: Sequence[int],
        guidance: float,
        progress: Progress,
    ) -> Float[Tensor, "b d"]:
        """Draws one embedding per encoded caption, each from its own seed, not normalised yet."""

    def adopt(self, statistics: Mapping[str, Tensor]) -> None:
        """Takes over statistics of the training data, computed before the training.

        Raises:
            ValueError: This prior needs no statistics, or others.
        """
        raise ValueError(f"{type(self).__name__} needs no statistics of the data")

    def check_ready(self) -> None:
        """Raises a ValueError, which says what to do first, if this prior cannot train or sample yet."""

    def reads(self, decomposer: Decomposer) -> "Prior":
        """Sets the encoder of captions. It belongs to the data: it is neither trained nor saved with the weights."""
        self.encode = decomposer.eval().forward
        return self

    @torch.no_grad()
    def sample(
        self,
        captions: Sequence[str],
        n: int = 1,
        seeds: Sequence[int] | None = None,
        guidance: float | None = None,
        progress: Progress | None = None,
    ) -> Float[Tensor, "b d"]:
        """Draws image embeddings for captions, ready for `Cascade.sample` as its ``semantics``.

        Args:
            captions: What the images should show; "" asks for nothing in particular.
            n: Embeddings per caption.
            seeds: One per row; a row depends on its caption and its seed alone. None counts from 0.
            guidance: Weight of classifier-free guidance; None is the prior's own.
            progress: Wraps the sequence of steps, to show progress.

        Returns:
            `n` rows for the first caption, then those of the next one; unit length times sqrt(dim) if `scaled`.

        Raises:
            ValueError: The number of seeds differs from that of the rows, or the prior has no encoder of captions.
        """
        rows = len(captions) * n
        seeds = range(rows) if seeds is None else seeds
        if isinstance(captions, str) or not rows or len(seeds) != rows:
            raise ValueError(
                f"expected a list of captions, n of at least 1 and {rows} seeds (one per row), found {captions!r}, {n} "
                f"and {len(seeds)} seeds"
            )
        if self.encode is None:
            raise ValueError("this prior has no caption encoder: use Prior.load, or set one with prior.reads(...)")
        self.check_ready()
        weight = next(self.parameters())
        caption = self.encode({"caption": list(captions)}).to(weight).repeat_interleave(n, dim=0)
        guidance = self.guidance if guidance is None else guidance
        was_training = self.training
        drawn = self.eval().draw(caption, list(seeds), guidance, progress or _silent)
        self.train(was_training)
        return to_sphere(drawn) if self.scaled else drawn

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], plugins: Collection[str] = (), folder: Path | None = None) -> "Prior":
        """Builds a prior with fresh weights from its configuration.

        Raises:
            ValueError: The configuration is not that of a prior, or names something that is not on the closed list.
        """
        check_prior(spec)
        prior = build(spec["priors"][0], cls, plugins, folder)
        prior.reads(build(spec["decomposers"][TEXT], Decomposer, plugins, folder))
        prior.spec, prior._folder = dict(spec), folder
        return prior

    @classmethod
    def load(cls, folder: str | Path, plugins: Collection[str] = (), network: bool = False) -> "Prior":
        """Loads a prior's folder.

        Args:
            folder: The prior's folder, its name, or ``owner/name@revision`` on the Hugging Face hub.
            plugins: Modules that the user trusts.
            network: Whether a prior on the hub, and weights that it names, may be downloaded if they are not on this
                machine yet.

        Raises:
            FileNotFoundError: There is no model at that place, or a file of it is missing.
            ValueError: It is another kind of model, files are damaged, weights and configuration do not belong
                together, or the configuration names something that is not on the closed list.
        """
        path = find_model(folder, network)
        config, weights, sha256 = read_model(path, "priors")
        (tensors,) = weights.values()
        with fetching(network):
            require_fit(lambda: build(config["priors"][0], cls, plugins, path), tensors, str(path))
            prior = cls.from_spec(config, plugins, path)
        load_strictly(prior, tensors, str(path))
        prior.sha256, prior._network = sha256, network
        return prior.eval()

    def save(self, folder: str | Path, card: str = "", dtype: torch.dtype = torch.float32) -> None:
        """Saves the prior as a folder: weights, configuration, manifest and card.

        Args:
            folder: Where to.
            card: The model card, Markdown.
            dtype: Precision of the weights on disk; torch.float16 halves the size.
        """
        file = self.spec["priors"][0].get("file", PRIOR_FILE)
        write_model(Path(folder), self.spec, {file: {k: v.to(dtype) for k, v in self.state_dict().items()}}, card)

    def push(
        self,
        repo: str,
        *,
        message: str = "Upload the prior",
        private: bool | None = None,
        card: str = "",
        dtype: torch.dtype = torch.float32,
    ) -> str:
        """Uploads the prior to the Hugging Face hub, as `composer.Cascade.push` does a model.

        Args:
            repo: ``owner/name``; it is made if it is missing.
            message: Of the commit.
            private: Whether a new repository is private; None leaves it to the owner's settings there.
            card: See `save`; an empty one keeps the card that the prior was loaded with.
            dtype: See `save`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: The prior has files of a kind that is not fetched from the hub, or is too large.
            OSError: The hub cannot be reached, or refuses.
        """
        return push_model(repo, lambda at: self.save(at, card, dtype), self.spec, self._folder, message, private)

    def image_reader(self, plugins: Collection[str] = ()) -> Decomposer:
        """The decomposer whose image embeddings this prior, which must have been loaded, was trained on.

        Raises:
            ValueError: Its configuration does not name it.
        """
        if SEMANTICS not in self.spec["decomposers"]:
            raise ValueError(f"this prior's configuration has no decomposer {SEMANTICS} for its image embeddings")
        with fetching(self._network):
            reader = build(self.spec["decomposers"][SEMANTICS], Decomposer, plugins, self._folder)
        return reader.eval().requires_grad_(False)


class CaptionTokens(nn.Module):
    """The first tokens of a prior's sequence: a caption's words, then the text embedding.

    Words come first, so that padding behind the longest caption of a batch can be left out.

    Args:
        dim: Width of CLIP's embeddings.
        caption_dim: Channels of an encoded caption, without the mask.
        width: Channels of a token.
        length: Maximum number of words; 0 leaves the text embedding alone.
        scaled: See `Prior`; so are the next two.
        hidden: See `Prior`.
        null_length: See `Prior`.
    """

    nothing: Tensor

    def __init__(
        self,
        dim: int,
        caption_dim: int,
        width: int,
        length: int,
        scaled: bool = True,
        hidden: int = 0,
        null_length: int = 0,
    ):
        super().__init__()
        if dim > caption_dim:
            raise ValueError(f"expected caption_dim to hold the embedding's {dim} channels, found {caption_dim}")
        if null_length and not 0 < null_length <= length + 1:
            raise ValueError(f"expected a null_length of at most {length} words and the sentence, found {null_length}")
        self.dim, self.caption_dim, self.length, self.scaled, self.null = dim, caption_dim, length, scaled, null_length
        self.word = nn.Linear(caption_dim, width) if length else None
        self.text = projection(dim, hidden, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02) if length else None
        if null_length:
            self.register_buffer("nothing", torch.zeros(null_length, caption_dim + 1))
        else:
            self.nothing = nn.Parameter(torch.randn(width) * 0.02)

    def forward(
        self, caption: Float[Tensor, "b n c"], keep: Bool[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b m w"], Bool[Tensor, "b m"]]:
        """Returns the tokens and which of them are real.

        A row without text has a single, learned token, or those of the null encoding.

        Raises:
            ValueError: A caption has more words than there are positions.
        """
        captioned = has_caption(caption, keep)
        if not self.length:
            caption = torch.cat([caption[:, -1:, : self.caption_dim], caption[:, -1:, -1:]], dim=2)
        if self.null:
            caption = fill_captions(caption, self.nothing, captioned, sentence=True)
            captioned = torch.ones_like(captioned)
        text = self.text(self.sentence(caption))
        text = (text if self.null else torch.where(captioned[:, None], text, self.nothing))[:, None]
        if self.word is None or self.position is None:
            return text, torch.ones_like(captioned)[:, None]
        words, real = caption[:, :-1, :-1], (caption[:, :-1, -1] > 0.5) & captioned[:, None]
        if real.device.type == "cpu":  # elsewhere a shape that depends on values would wait for the device
            longest = int((real * torch.arange(1, real.shape[1] + 1)).max())
            words, real = words[:, :longest], real[:, :longest]
        n = words.shape[1]
        if n > self.length:
            raise ValueError(f"this prior reads captions of at most {self.length} words, found {n}")
        tokens = torch.cat([self.word(words) + self.position[:n], text], dim=1)
        return tokens, torch.cat([real, torch.ones_like(captioned)[:, None]], dim=1)

    def sentence(self, caption: Float[Tensor, "b n c"]) -> Float[Tensor, "b d"]:
        """The text embedding of encoded captions, at the length that the prior reads it."""
        return text_embedding(caption, self.dim) if self.scaled else caption[:, -1, : self.dim]


def projection(in_dim: int, hidden: int, out_dim: int) -> nn.Module:
    """A linear layer, or two with `hidden` channels between them."""
    if not hidden:
        return nn.Linear(in_dim, out_dim)
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.SiLU(), nn.Linear(hidden, out_dim))


def has_caption(caption: Float[Tensor, "b n c"], keep: Bool[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """Which rows have a caption that is kept."""
    return keep & (caption[:, -1, -1] > 0.5)


def text_embedding(caption: Float[Tensor, "b n c"], dim: int) -> Float[Tensor, "b {dim}"]:
    """The sentence's embedding of encoded captions, of unit length times sqrt(dim); 0 where there is no caption."""
    return to_sphere(caption[:, -1, :dim])


def to_sphere(embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Embeddings of unit length times sqrt(d), so that each number is about 1 in size."""
    return F.normalize(embedding, dim=1) * math.sqrt(embedding.shape[1])


def _silent(steps: Sequence[int]) -> Sequence[int]:
    return steps
