"""A run is resumed on the data that it was trained on, or says what differs."""

import pytest

from composer.data.datasets import Crops, ImageDataset
from composer.data.embeddings import Embeddings
from composer.data.loading import ImageData, ImageFolder, Mixture, Photographs, SceneImages
from composer.data.resuming import IMAGES_PER_STEP, compare_data
from composer.training import checkpoint as checkpoints
from composer.training.callbacks import Checkpoints
from decomposers import Intensity, Palette
from tests.data.test_data import image
from tests.training.test_training import Gradients, same, stage, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have")


def data(train=12, validation=12, **kwargs):
    decomposers = {"intensity": Intensity(), "palette": Palette()}
    return ImageData(Gradients(train), Gradients(validation), decomposers, **{"batch_size": 4} | kwargs)


@pytest.fixture
def last(tmp_path):
    """The checkpoint of a run of 4 steps."""
    trainer(tmp_path, Checkpoints(100)).fit(stage(), data())
    return tmp_path / "checkpoints" / "last.ckpt"


def resume(last, data, **options):
    model = stage()
    root = last.parent.parent
    trainer(root, Checkpoints(100), **{"max_steps": 6} | options).fit(model, data, ckpt_path=last)
    return weights(model)


def test_other_images_are_refused_and_other_batches_are_told(last, capsys):
    before = last.read_bytes()
    for wrong, differs in ((data(13), "train rows: 12 before, 13 now"), (data(seed=7), "seed: 0 before, 7 now")):
        with pytest.raises(ValueError, match=f"{differs}.*--data.accept_changes true.*--model.start_from MODEL"):
            resume(last, wrong)
    assert last.read_bytes() == before
    capsys.readouterr()
    resume(last, data(validation=8, batch_size=2), max_steps=5)
    said = capsys.readouterr().err
    assert "images per step: 4 before, 2 now: the order of images stays, but some are seen again" in said
    assert "the validation data changed: validation rows: 12 before, 8 now" in said


def test_who_wants_to_goes_on_with_other_images_and_they_count_from_then_on(last, capsys):
    resume(last, data(13, accept_changes=True), max_steps=5)
    assert "note: the training data changed: train rows: 12 before, 13 now" in capsys.readouterr().err
    with pytest.raises(ValueError, match="train rows: 13 before, 12 now"):
        resume(last, data())


def test_the_same_images_in_other_portions_are_the_same_run(last, capsys):
    """Two micro-batches of 2 see what a batch of 4 sees."""
    resume(last, data(batch_size=2), accumulate_grad_batches=2)
    assert "note" not in capsys.readouterr().err


def test_checkpoints_that_remember_no_data_still_resume(last):
    old = last.with_name("old.ckpt")
    checkpoint = checkpoints.load(last)
    del checkpoint["ImageData"]
    checkpoints.save(checkpoint, old)
    assert same(resume(old, data()), resume(last, data()))


def test_a_checkpoint_is_validated_on_any_data(last):
    trainer(last.parent, limit_val_batches=1).validate(stage(), data(99, 5), ckpt_path=last, verbose=False)


def test_a_folder_is_known_by_its_files(tmp_path):
    for name in "ab":
        image(tmp_path / "one" / name / "1.png")
        (tmp_path / "one" / name / "1.txt").write_text(name)
    before = ImageFolder(f"{tmp_path}/one", 32).identity()
    assert before["class"] == "ImageFolder" and before["rows"] == 2
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "two" / "a" / "1.txt").write_text("a better caption")
    assert ImageFolder(f"{tmp_path}/two/", 64, crop="random", flip=True).identity() == before
    (tmp_path / "two" / "a" / "1.png").rename(tmp_path / "two" / "a" / "2.png")
    after = ImageFolder(f"{tmp_path}/two", 32, captions="empty").identity()
    assert after.keys() == before.keys() and {key for key in after if after[key] != before[key]} == {
        "hash of the file names"
    }


def test_what_tells_datasets_apart(tmp_path):
    scenes = SceneImages("train", 32, 10)
    assert scenes.identity() == SceneImages("train", 64, 10).identity() == Crops(scenes, 16).identity()
    others: list[ImageDataset] = [
        SceneImages("val", 32, 10),
        SceneImages("train", 32, 11),
        SceneImages("train", 32, 10, seed=1),
    ]
    others += [Photographs(32, ["rocket.jpg"]), Photographs(32, ["coffee.png"])]
    others += [Mixture([scenes, other], [1, 1]) for other in others] + [Mixture([scenes, others[0]], [1, 2])]
    assert len({repr(dataset.identity()) for dataset in [scenes, *others]}) == 1 + len(others)
    for captions in ('["a", "b"]', '["a", "c"]'):
        (tmp_path / "captions.json").write_text(captions)
        others.append(Embeddings(str(tmp_path)))
    assert others[-1].identity() != others[-2].identity()


def test_differences_are_named_down_to_the_parts_of_a_mixture():
    before = {"train": {"class": "Mixture", "0": {"rows": 5}}, "seed": 0, IMAGES_PER_STEP: 4}
    assert compare_data(before, before) == []
    with pytest.raises(
        ValueError, match=r"other data: train 0 rows: 5 before, 6 now; train 1 rows: none before, 7 now\."
    ):
        compare_data(before, {**before, "train": {"class": "Mixture", "0": {"rows": 6}, "1": {"rows": 7}}})
    (note,) = compare_data(before, {**before, IMAGES_PER_STEP: 8})
    assert note.endswith("4 before, 8 now: the order of images stays, but some are left out where it resumes")
