"""A configuration stands for no more than it holds, and those that are shipped stay as they are."""

from pathlib import Path

import pytest
import yaml

from composer.__main__ import main
from composer.training.config_bounds import MAX_CHARACTERS, TooLarge, check_size
from tests.commands.test_command_lines import BOMB

CHAIN = "let:\n  a0: xxxxxxxxx\n" + "".join(f"  a{i}: '{f'${{let.a{i - 1}}}' * 9}'\n" for i in range(1, 10))
QUOTED = "'${a%d}'"
LISTS = "a0: [1, 2]\n" + "".join(f"a{i}: [{','.join([QUOTED % (i - 1)] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize("path", sorted(Path("configs").rglob("*.yaml")), ids=str)
def test_shipped_configurations_are_within_bounds(path):
    check_size(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "stand for more than 100,000 values"),
        (BOMB.replace("[", "{k: [").replace("]", "]}"), "stand for more than 100,000 values"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: {c: *a}}", "contains itself"),
        (CHAIN, "interpolations that take plain values"),
        (LISTS, "interpolations that take plain values"),
        ("a: 1\nb: ${a${a}}", "interpolations that take plain values"),
        ("a" * (MAX_CHARACTERS + 1), "at most 4,000,000 characters"),
    ],
)
def test_what_stands_for_too_much_is_refused(text, says):
    with pytest.raises(TooLarge, match=says):
        check_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {b: 1}\nc: [*a, *a, {<<: *a, d: 2}]",
        "let: {a: 1, b: x}\nc: ${let.a}\nd: ${let.b}-${let.a}\ne: ${let}",
        "a & b * c",
        "",
    ],
)
def test_what_is_of_use_passes(text):
    check_size(text)


def test_as_many_values_as_are_counted():
    for count, fits in ((316, False), (310, True)):  # 1 + ... of n aliases of lists of n values
        text = f"a: &a [{','.join(['1'] * count)}]\nb: [{','.join(['*a'] * count)}]"
        spelled = sum(len(value) for value in yaml.safe_load(text)["b"])
        assert (spelled < 98_000) is fits
        if fits:
            check_size(text)
        else:
            with pytest.raises(TooLarge):
                check_size(text)


@pytest.mark.parametrize("text", [BOMB, CHAIN, "a: &a [*a]"])
@pytest.mark.parametrize("words", [["fit", "-c", "FILE"], ["doctor", "FILE"], ["fit", "-c", "tiny", "--let", "TEXT"]])
def test_every_command_refuses_it(tmp_path, monkeypatch, capsys, text, words):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    monkeypatch.setattr("sys.argv", ["composer"])
    assert main([{"FILE": str(path), "TEXT": text}.get(word, word) for word in words]) in (1, 2)
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") <= 5
