"""DALL-E's transformer: the tokens of a text, then the codes of an image, as one sequence (Ramesh et al. 2021)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from composer.autoregressive.attention import behind_text, column_mask, convolution_mask, row_mask
from composer.autoregressive.drawing import choose, keep_top, uniform
from composer.devices import to_float64
from composer.diffusion.samplers import Progress
from composer.networks.transformer import CausalTransformer, KVCache
from composer.storage.building import Buildable

TEXT_WEIGHT, IMAGE_WEIGHT = 1 / 8, 7 / 8
"""Of the two cross-entropies in the loss (section 2.2)."""


class ImageTokens(nn.Module, Buildable):
    """p(text, image): predicts each token of a text, then each code of an image, from those before it.

    The codes are those of `composer.networks.dvae.DVAE`, row by row. Text positions behind the end of a text hold a
    padding token, one learned per position; it counts as a token of the text, so the end of a text is predicted too.
    Layers attend in the order row, column, row, row, and so on; the last one by convolution (appendix B.1). The
    masks are dense: they decide what is learned, and save no computation.

    The defaults are the paper's 12-billion-parameter model. A learned token, which starts the sequence, gives the
    first text token its probabilities.

    Args:
        width: Channels of a token.
        layers: Number of transformer blocks.
        heads: Attention heads of a block, a divisor of the width.
        vocabulary: Number of text tokens, without padding.
        codes: Number of image codes.
        text_length: Text positions.
        rows: Height of the grid of codes.
        columns: Width of the grid of codes.
        kernel: Height and width of the last layer's attention, odd.

    Attributes:
        padding: The number that stands for padding in a text: `vocabulary`.
        patterns: Of each layer's attention: 0 by row, 1 by column, 2 by convolution.

    Raises:
        ValueError: A size is below 1, the kernel is even, or the heads do not divide the width.

    Reference: Ramesh et al. 2021, section 2.2 and appendix B.1.
    """

    masks: Tensor

    def __init__(
        self,
        width: int = 3968,
        layers: int = 64,
        heads: int = 62,
        vocabulary: int = 16384,
        codes: int = 8192,
        text_length: int = 256,
        rows: int = 32,
        columns: int = 32,
        kernel: int = 11,
    ):
        super().__init__()
        sizes = vocabulary, codes, text_length, rows, columns, kernel
        if min(sizes) < 1 or kernel % 2 == 0:
            raise ValueError(
                "expected vocabulary, codes, text_length, rows, columns and kernel of at least 1, and an odd kernel, "
                f"found {', '.join(map(str, sizes))}"
            )
        self.padding, self.codes, self.text_length, self.rows, self.columns = sizes[:5]
        self.start = nn.Parameter(_small(width))
        self.embed_text, self.embed_code = nn.Embedding(vocabulary, width), nn.Embedding(codes, width)
        for table in (self.embed_text, self.embed_code):
            nn.init.normal_(table.weight, std=0.02)
        self.text_position = nn.Parameter(_small(text_length, width))
        self.pad = nn.Parameter(_small(text_length, width))
        self.row, self.column = nn.Parameter(_small(rows, 1, width)), nn.Parameter(_small(columns, width))
        self.transformer = CausalTransformer(width, layers, heads)
        self.to_text, self.to_code = nn.Linear(width, vocabulary + 1), nn.Linear(width, codes)
        masks = row_mask(rows, columns), column_mask(rows, columns), convolution_mask(rows, columns, kernel)
        self.register_buffer("masks", torch.stack([behind_text(m, 1 + text_length) for m in masks]), persistent=False)
        self.patterns = [*(1 if layer % 4 == 1 else 0 for layer in range(layers - 1)), 2]

    def pad_text(self, texts: Sequence[Sequence[int]]) -> Int[Tensor, "b t"]:
        """Fills texts with padding up to `text_length`.

        Args:
            texts: Tokens of each text, from 0 to `vocabulary` - 1.

        Raises:
            ValueError: A text is too long, or has another token.
        """
        padded = torch.full((len(texts), self.text_length), self.padding, device=self.start.device)
        for row, text in zip(padded, texts, strict=True):
            if len(text) > self.text_length or not all(0 <= token < self.padding for token in text):
                raise ValueError(
                    f"expected at most {self.text_length} tokens from 0 to {self.padding - 1}, found {list(text)}"
                )
            row[: len(text)] = torch.tensor(text, dtype=torch.long)
        return padded

    def forward(
        self, text: Int[Tensor, "b t"], codes: Int[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b t v"], Float[Tensor, "b n q"]]:
        """Computes the logits of each text token and of each code, in raster order, given all before it; float32.

        Args:
            text: As `pad_text` gives it. The last of the v = vocabulary + 1 logits is that of padding.
            codes: As `composer.networks.dvae.DVAE.encode` gives them.
        """
        x = self._transform(self._embed(text, codes.flatten(1)[:, :-1]))
        t = self.text_length
        return self.to_text(x[:, :t]).float(), self.to_code(x[:, t:]).float()

    def negative_log_likelihood(
        self, text: Int[Tensor, "b t"], codes: Int[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b n"]]:
        """-ln p of each text token and of each code, given all before it, in nats; arguments as of `forward`."""
        text_logits, code_logits = self(text, codes)
        of_text = F.cross_entropy(text_logits.transpose(1, 2), text, reduction="none")
        return of_text, F.cross_entropy(code_logits.transpose(1, 2), codes.flatten(1), reduction="none")

    def loss(
        self, text: Int[Tensor, "b t"], codes: Int[Tensor, "b h w"], keep: Bool[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """The training loss, per row: 1/8 of the mean over text tokens and 7/8 of the mean over codes of -ln p.

        Args:
            text: As `pad_text` gives it.
            codes: As `composer.networks.dvae.DVAE.encode` gives them.
            keep: False where a row's text is replaced by padding, for guidance; the text's part of its loss is 0.
                Not in the paper.
        """
        of_text, of_codes = self.negative_log_likelihood(torch.where(keep[:, None], text, self.padding), codes)
        return TEXT_WEIGHT * keep * of_text.mean(1) + IMAGE_WEIGHT * of_codes.mean(1)

    @torch.no_grad()
    def sample(
        self,
        text: Int[Tensor, "b t"],
        seeds: Sequence[int],
        *,
        first: Int[Tensor, "n r w"] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        guidance: float = 1.0,
        progress: Progress | None = None,
    ) -> Int[Tensor, "b h w"]:
        """Draws the codes of images for texts, one after the other.

        Keys and values are cached, so that each code costs one position.

        Args:
            text: As `pad_text` gives it.
            seeds: One per row; a row depends on its text, its first codes and its seed alone.
            first: Codes of the first rows of each image, which are kept; the rest is drawn (image completion).
            temperature: Divides the logits; above 0. Below 1, likely codes become likelier.
            top_k: Draws among this many most likely codes; 1 takes the likeliest, None draws among all.
            guidance: Weight w of the logits: w l(text) + (1 - w) l(padding alone); 1 is none. Not in the paper; it
                needs a training that drops texts (`loss`).
            progress: Wraps the sequence of steps, to show progress.

        Raises:
            ValueError: Texts, seeds and first codes do not fit together, or an option is outside its range.
        """
        places = self.rows * self.columns
        self._check(text, seeds, first, temperature, top_k)
        known = text.new_empty(len(text), 0) if first is None else first.flatten(1)
        k = 1 if guidance == 1 else 2
        read = text if k == 1 else torch.cat([text, torch.full_like(text, self.padding)])
        chance = torch.stack([uniform(seed, places) for seed in seeds])
        tokens, drawn = self._embed(read, known.repeat(k, 1)), list(known.unbind(1))
        cache = KVCache(self.text_length + places)
        steps = range(len(drawn), places)
        for i in progress(steps) if progress else steps:
            logits = to_float64(self.to_code(self._transform(tokens, cache)[:, -1]).float()).chunk(k)
            guided = logits[0] if k == 1 else torch.lerp(logits[1], logits[0], guidance)
            code = choose(keep_top(guided / temperature, top_k), chance[:, i].to(guided.device)).to(text.device)
            drawn.append(code)
            tokens = self._embed_codes(code.repeat(k)[:, None], i)
        return torch.stack(drawn, dim=1).view(-1, self.rows, self.columns)

    def _check(
        self, text: Tensor, seeds: Sequence[int], first: Tensor | None, temperature: float, top_k: int | None
    ) -> None:
        if not len(text) or text.shape[1] != self.text_length or len(seeds) != len(text):
            raise ValueError(
                f"expected texts of {self.text_length} tokens, as pad_text gives them, and one seed for each, found "
                f"{tuple(text.shape)} and {len(seeds)} seeds"
            )
        _check_range("text tokens", text, self.padding)
        if first is not None:
            count, rows, columns = first.shape
            if count != len(text) or rows > self.rows or columns != self.columns:
                raise ValueError(
                    f"expected first codes of {len(text)} images, at most {self.rows} rows of {self.columns}, found "
                    f"{tuple(first.shape)}"
                )
            _check_range("codes", first, self.codes - 1)
        if temperature <= 0 or (top_k is not None and top_k < 1):
            raise ValueError(f"expected a temperature above 0 and top_k of at least 1, found {temperature} and {top_k}")

    def _embed(self, text: Tensor, codes: Tensor) -> Float[Tensor, "b n c"]:
        """The start, a text, and the first codes of an image."""
        padded = text == self.padding
        words = self.embed_text(text.masked_fill(padded, 0)) + self.text_position
        start = self.start.expand(len(text), 1, -1)
        return torch.cat([start, torch.where(padded[..., None], self.pad, words), self._embed_codes(codes, 0)], dim=1)

    def _embed_codes(self, codes: Tensor, begin: int) -> Float[Tensor, "b n c"]:
        """Codes that stand in the places from `begin` on."""
        place = (self.row + self.column).flatten(0, 1)[begin : begin + codes.shape[1]]
        embedded: Tensor = self.embed_code(codes) + place
        return embedded

    def _transform(self, tokens: Tensor, cache: KVCache | None = None) -> Float[Tensor, "b n c"]:
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        read: Tensor = self.transformer(tokens, real, cache, masks=[self.masks[i] for i in self.patterns])
        return read


def _check_range(name: str, values: Tensor, last: int) -> None:
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) <= last:
        raise ValueError(f"expected {name} from 0 to {last}, found {int(values.min())} to {int(values.max())}")


def _small(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.02
