"""Words of captions that a model cannot read are counted and said."""

import pytest

from composer.data.datasets import Crops, ImageDataset
from composer.data.loading import ImageFolder, Mixture, Photographs, SceneImages
from composer.data.unread import count_unread
from composer.decomposition import Decomposition
from decomposers import Palette, Tokens
from tests.data.test_data import image

WORDS = "asset:scenes_clip/words.txt"
KNOWN = "a red cube on sand"


class Captions(ImageDataset):
    def __init__(self, *captions):
        self.captions = captions

    def __len__(self):
        return len(self.captions)

    def row(self, index, seed):
        raise AssertionError("no image needs to be read")

    def caption(self, index):
        return self.captions[index]


def decomposition(**options):
    return Decomposition({"palette": Palette(), "tokens": Tokens(**{"length": 12, "words": WORDS, **options})})


def test_unknown_words_are_counted_by_captions_and_named_most_frequent_first():
    captions = [KNOWN, "a Zebra, on sand", "a zebra beside a zebra.", "a red llama", "", KNOWN]
    assert count_unread(Captions(*captions), decomposition()) == [
        "captions, as tokens reads them: 3 of 6 have words that it does not know "
        "(most often: 'zebra' 2, 'beside' 1, 'llama' 1)",
        "captions: 1 of 6 are empty",
    ]


def test_captions_that_are_too_long_are_told_apart():
    captions = [KNOWN, f"{KNOWN} {KNOWN} {KNOWN}", f"a zebra {KNOWN} {KNOWN} {KNOWN}"]
    assert count_unread(Captions(*captions), decomposition()) == [
        "captions, as tokens reads them: 1 of 3 have words that it does not know (most often: 'zebra' 1); "
        "2 of 3 are too long for it and are cut"
    ]
    (line,) = count_unread(Captions(*captions), decomposition(words=None))  # CLIP's pieces spell everything
    assert line == "captions, as tokens reads them: 2 of 3 are too long for it and are cut"


def test_of_many_captions_evenly_spread_ones_are_looked_at():
    captions = Captions(*(KNOWN if i % 10 else f"{i} zebras" for i in range(100)))
    (line,) = count_unread(captions, decomposition(), most=20)
    assert "10 of 20 checked (of 100) have words" in line and "'zebras' 10" in line


def test_nothing_is_said_where_all_is_read_or_nothing_is_known():
    assert count_unread(Captions(KNOWN), decomposition()) == []
    assert count_unread(Captions("a zebra"), Decomposition({"palette": Palette()})) == []

    class Silent(Captions):
        caption = ImageDataset.caption

    assert count_unread(Silent("a zebra"), decomposition()) == []
    assert count_unread(SceneImages("train", 32, 40), decomposition(length=48)) == []


def test_a_folder_of_images(tmp_path):
    for i, caption in enumerate([KNOWN, "a zebra on sand", ""]):
        image(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    lines = count_unread(ImageFolder(str(tmp_path), 32), decomposition())
    assert ["'zebra' 1" in lines[0], "1 of 3 are empty" in lines[1]] == [True, True]


@pytest.mark.parametrize(
    "dataset",
    [
        SceneImages("val", 32, 40, seed=3),
        Photographs(32),
        Mixture([Photographs(32), SceneImages("train", 32, 5)], [2, 1]),
        Crops(SceneImages("train", 32, 5), 16),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_captions_are_those_of_the_rows(dataset):
    for i in range(0, len(dataset), 3):
        assert dataset.caption(i) == dataset.row(i, 1)["caption"]
