"""Scenes: a procedural world with exact ground truth, to train and measure without downloads."""

from composer.scenes.batch import SPLITS, describe, name_objects, render_batch
from composer.scenes.captions import WORDS
from composer.scenes.layout import COLOURS, MATERIALS, NOVEL_PAIRS, SHAPES, SIZES
from composer.scenes.phrases import PHRASES, find_true_phrases
from composer.scenes.retelling import render_retold
from composer.scenes.scenery import GROUNDS, SKIES
from composer.scenes.swaps import swap, swaps
from composer.scenes.writing import read_scene, settings_of, write_scenes

read, shown, write = read_scene, find_true_phrases, write_scenes
"""Names from before 0.2."""

__all__ = [
    "COLOURS",
    "GROUNDS",
    "MATERIALS",
    "NOVEL_PAIRS",
    "PHRASES",
    "SHAPES",
    "SIZES",
    "SKIES",
    "SPLITS",
    "WORDS",
    "describe",
    "find_true_phrases",
    "name_objects",
    "read",
    "read_scene",
    "render_batch",
    "render_retold",
    "settings_of",
    "shown",
    "swap",
    "swaps",
    "write",
    "write_scenes",
]
