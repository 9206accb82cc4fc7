"""Captions as ids of word pieces."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from string import punctuation
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from composer.decomposition import Batch, Decomposer
from composer.names import Kind
from composer.storage.files import shorten_error
from composer.storage.pretrained import locate

_START, _END, _UNKNOWN = 49406, 49407, -1
MAX_LENGTH = 10_000
"""Maximum pieces per caption."""

MAX_WORDS = 10_000_000
"""Maximum bytes of a file of words."""


@lru_cache(maxsize=1)
def _bpe() -> Any:
    from open_clip import SimpleTokenizer

    return SimpleTokenizer()


@lru_cache(maxsize=1 << 16)
def _pieces(word: str) -> tuple[int, ...]:
    """A word's pieces, cached: captions share words, and CLIP's tokenizer takes 0.1 ms per word."""
    return tuple(_bpe().encode(word))


class Tokens(Decomposer):
    """Ids of a caption's byte-pair pieces, for a text transformer that trains with the model (GLIDE, section 2.2).

    The pieces are CLIP's (Radford et al. 2021): start, pieces, end, then zeros. A row without a caption is all zeros,
    its mask too. A caption that is too long is cut, keeping the end piece. With `merges`, the pieces are GPT-2's, of
    the caption in lower case and without start and end, as the released GLIDE reads them.

    Args:
        length: Pieces per caption, including start and end.
        words: A text file with one word a line (see `locate`). The ids then cover only the pieces of these words: 0
            padding, 1 unknown, the words' pieces in the file's order, start, end, so that a small model needs no
            embedding of 49,408 rows. None keeps CLIP's ids.
        merges: GPT-2's ``merges.txt`` (see `locate`), such as ``hub:openai-community/gpt2@REVISION:merges.txt``. Needs
            the package tokenizers, which comes with the extra ``hf``. None takes CLIP's pieces.

    Raises:
        ValueError: `words` and `merges` are both given, or the file is not what it should be.
    """

    kind = Kind.TEXT
    code_licence = "MIT (open_clip)"
    weights_licence = "MIT (CLIP's vocabulary)"
    weights_arguments = ("words", "merges")

    def __init__(self, length: int = 77, words: str | None = None, merges: str | None = None):
        super().__init__()
        if words is not None and merges is not None:
            raise ValueError("Tokens: words choose among CLIP's pieces, merges are GPT-2's: give one of them")
        if not 2 <= length <= MAX_LENGTH:
            raise ValueError(f"a caption needs start and end and has at most {MAX_LENGTH} pieces, found {length=}")
        self.length = length
        self.vocabulary = None if words is None else _words(words)
        self._compact = None if self.vocabulary is None else _compact(self.vocabulary)
        self._gpt2 = None if merges is None else _byte_pairs(locate(merges, wanted="GPT-2's merges.txt", who="Tokens"))

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: rows of an embedding."""
        if self._gpt2 is not None:
            return int(self._gpt2.get_vocab_size())
        return _END + 1 if self._compact is None else len(self._compact) + 2

    def can_read(self, batch: Batch) -> bool:
        return "caption" in batch

    def forward(self, batch: Batch) -> Int[Tensor, "b n 2"]:
        """Tokenizes the captions; the last channel is 1 for real pieces."""
        rows = [self.encode(caption) for caption in batch["caption"]]
        return torch.stack(rows).to(captions_device(batch))

    def encode(self, caption: str, empty: bool = False) -> Int[Tensor, "n 2"]:
        """Tokenizes one caption.

        Args:
            caption: The caption.
            empty: Whether an empty one has start and end, too, which differs from none.
        """
        value = torch.zeros(self.length, 2, dtype=torch.long)
        if caption and self._gpt2 is not None:
            ids = self._gpt2.encode(caption.lower()).ids[: self.length]
            value[: len(ids), 0], value[: len(ids), 1] = torch.tensor(ids), 1
        elif caption or empty:
            ids = [_START, *_bpe().encode(caption)[: self.length - 2], _END]
            if self._compact is not None:
                ids = [self._compact.get(piece, 1) for piece in ids]
            value[: len(ids), 0], value[: len(ids), 1] = torch.tensor(ids), 1
        return value

    def decode(self, value: Int[Tensor, "n 2"]) -> str:
        """Converts one row of pieces to text, unknown ones to question marks."""
        ids: list[int] = value[value[:, 1].bool(), 0].tolist()
        if self._gpt2 is not None:
            return str(self._gpt2.decode(ids))
        if self._compact is not None:
            pieces = {i: piece for piece, i in self._compact.items()}
            ids = [pieces.get(i, _UNKNOWN) for i in ids]
        spelled = "".join("? " if i == _UNKNOWN else _bpe().decode([i]) for i in ids if i not in (_START, _END))
        return spelled.replace(" ,", ",").replace(" :", ":").strip()

    def to_text(self, value: Int[Tensor, "1 n 2"]) -> str | None:
        """See `decode`; None for an empty caption."""
        return self.decode(value[0].cpu()) or None

    def from_text(self, text: str) -> Int[Tensor, "b n 2"]:
        """Tokenizes a caption."""
        value: Tensor = self({"caption": [text]})
        return value

    def unread(self, text: str) -> tuple[str, ...]:
        """Lists words with an unknown piece, and words beyond the length; punctuation is ignored."""
        if (gpt2 := self._gpt2) is not None:
            return lost_words(text, self.length, lambda word: gpt2.encode(" " + word.lower()).ids, lambda _: True)
        known = (lambda piece: True) if self._compact is None else self._compact.__contains__
        return lost_words(text, self.length - 2, _pieces, known)

    def preview(self, value: Int[Tensor, "b n 2"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the caption as text."""
        return write_texts([self.decode(row) for row in value.cpu()]).to(value.device)

    def distance(self, wanted: Int[Tensor, "b n 2"], got: Int[Tensor, "b n 2"]) -> Float[Tensor, " b"]:
        """Share of differing pieces, of those that either caption has."""
        real = (wanted[..., 1] | got[..., 1]).bool()
        return ((wanted[..., 0] != got[..., 0]) & real).sum(1).float() / real.sum(1).clamp(min=1)


def lost_words(
    text: str, room: int, encode: Callable[[str], Sequence[int]], known: Callable[[int], bool]
) -> tuple[str, ...]:
    """Lists the words of a text with an unknown piece, or beyond the length; punctuation is ignored.

    Args:
        text: Words between spaces.
        room: Maximum number of pieces.
        encode: Splits a word into pieces.
        known: Whether a piece is in the vocabulary.
    """
    lost = []
    for word in text.split():
        room -= len(encode(word))
        if room < 0 or not all(map(known, encode(word.strip(punctuation)))):
            lost.append(word)
    return tuple(lost)


def captions_device(batch: Batch) -> torch.device:
    """The device for representations of captions: that of the batch's images or seeds, else the CPU."""
    beside = batch.get("image", batch.get("seed"))
    return torch.device("cpu") if beside is None else beside.device


def _words(words: str) -> tuple[str, ...]:
    """The words in a file."""
    path = locate(words, wanted="a text file with one word a line", who="Tokens")
    if path.stat().st_size > MAX_WORDS:
        raise ValueError(f"Tokens: expected at most {MAX_WORDS} bytes of words in {path}, found {path.stat().st_size}")
    return tuple(path.read_text(encoding="utf-8").split())


def _compact(words: Sequence[str]) -> dict[int, int]:
    """CLIP's id -> the compact one, for the pieces of words."""
    pieces = dict.fromkeys(piece for word in words for piece in _bpe().encode(word))
    return {piece: i for i, piece in enumerate([*pieces, _START, _END], start=2)}


@lru_cache(maxsize=4)
def _byte_pairs(path: Path) -> Any:
    """GPT-2's tokenizer. Its ids follow from the merges: the 256 bytes, what each merge makes, the end of a text."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise ImportError("Tokens with merges needs: pip install 'composer-diffusion[hf]'") from error
    if path.stat().st_size > MAX_WORDS:
        raise ValueError(f"Tokens: expected at most {MAX_WORDS} bytes of merges in {path}, found {path.stat().st_size}")
    lines = path.read_text(encoding="utf-8").splitlines()
    split = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
    pairs = [(first, second) for first, _, second in split]
    if not pairs or not all(first and second and " " not in second for first, second in pairs):
        raise ValueError(f"Tokens: expected two pieces with a space between them in each line of {path}")
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in pairs), "<|endoftext|>"]
    try:
        found = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, pairs))
    except Exception as error:  # the library raises its own
        raise ValueError(f"Tokens: {path} holds no merges of byte pairs: {shorten_error(error)}") from error
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return found


def write_texts(texts: Sequence[str], size: int = 128) -> Float[Tensor, "b 3 h w"]:
    """Draws texts dark on light, wrapped, one image each."""
    import textwrap

    from PIL import Image, ImageDraw, ImageFont
    from torchvision.transforms.functional import pil_to_tensor

    pictures = []
    for text in texts:
        font = ImageFont.load_default(size / (11 if len(text) < 120 else 15))
        columns = int(size / font.getlength("n")) - 1
        picture = Image.new("RGB", (size, size), "#f4f1ea")
        ImageDraw.Draw(picture).multiline_text((4, 4), textwrap.fill(text, columns), fill="#222", font=font, spacing=2)
        pictures.append(pil_to_tensor(picture))
    return torch.stack(pictures).float() / 127.5 - 1
