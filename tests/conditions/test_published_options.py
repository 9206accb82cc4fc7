"""Options of conditions that published networks need."""

import pytest
import torch
from torch.nn import functional as F

from composer.conditioning import ConditionSet
from conditions import Label, LowRes, Spatial, Text, TextTransformer, Vector

YES, NO, SIZE = torch.tensor([True, True]), torch.tensor([True, False]), (8, 8)


def same(a, b):
    return all(torch.allclose(x, getattr(b, name), atol=1e-6) for name, x in a.to_dict().items())


def test_a_dropped_vector_is_a_learned_one():
    condition = Vector(5, 8, 6, num_tokens=2, hidden=0, has_null=True)
    torch.nn.init.normal_(condition.nothing)
    value = torch.randn(2, 5)
    replaced = torch.stack([value[0], condition.nothing.detach()])
    assert same(condition(value, NO, SIZE), condition(replaced, YES, SIZE))
    assert [type(layer).__name__ for layer in condition.to_vector] == ["Linear"]
    condition(value, NO, SIZE).vector.sum().backward()
    assert condition.nothing.grad.abs().sum() > 0


def test_a_dropped_caption_is_an_empty_one():
    condition = TextTransformer(11, 16, 1, 2, 8, 16, length=4, skip_padding=False, project=False, has_null=True).eval()
    value = torch.tensor([[[3, 1], [4, 1], [0, 0], [0, 0]], [[5, 1], [0, 0], [0, 0], [0, 0]]])
    empty = torch.stack([value[0], torch.zeros(4, 2, dtype=torch.long)])
    assert same(condition(value, NO, SIZE), condition(empty, YES, SIZE))
    with pytest.raises(ValueError, match="expected a token_dim of the transformer's 16"):
        TextTransformer(11, 16, 1, 2, 8, 12, project=False)


def test_a_dropped_encoding_is_a_stored_one():
    condition = Text(5, 8, 6, norm="after", null_length=2)
    condition.nothing.copy_(torch.randn(2, 6))
    condition.nothing[:, -1] = 1
    value = torch.randn(2, 4, 6)
    value[..., -1] = 1
    made = condition(value, NO, SIZE)
    alone = condition(condition.nothing[None], YES[:1], SIZE)
    assert torch.allclose(made.vector[1], alone.vector[0], atol=1e-6)
    assert torch.equal(made.token_mask[1], torch.tensor([True, False, False]))
    assert torch.allclose(made.tokens[1, :1], alone.tokens[0], atol=1e-6)
    none = torch.zeros_like(value)  # an image without a caption
    assert torch.allclose(condition(none, YES, SIZE).vector[0], alone.vector[0], atol=1e-6)
    words = made.tokens[0]
    assert torch.allclose(words.mean(-1), torch.zeros(3), atol=1e-6)  # the norm comes last


def test_what_is_absent_is_read_as_its_null_value():
    kind = {"a": Vector(5, 8, 6, has_null=True), "b": Vector(3, 8, 6)}
    torch.nn.init.normal_(kind["a"].nothing)
    conditions, b = ConditionSet(kind), torch.randn(2, 3)
    reps = {"a": kind["a"].nothing.detach().expand(2, -1), "b": b}
    assert same(conditions({"b": b}, SIZE), conditions(reps, SIZE))
    assert len(conditions({}, SIZE).vector) == 1
    keep = {"a": NO, "b": YES}
    assert torch.allclose(
        conditions({"a": torch.randn(2, 5), "b": b}, SIZE, keep).vector[1], conditions(reps, SIZE).vector[1], atol=1e-6
    )


def test_maps_are_put_where_they_belong():
    image, kept = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)
    mask, low = Spatial(4, 7, offset=0), LowRes(7, offset=4)
    made = ConditionSet({"mask": mask, "low_res": low})({"mask": image, "low_res": kept}, SIZE).spatial
    enlarged = F.interpolate(kept[:, :3], SIZE, mode="bilinear")
    assert torch.equal(made, torch.cat([image, enlarged], 1))
    with pytest.raises(ValueError, match="expected room for 4 channels of 3"):
        Spatial(4, 3, offset=0)
    with pytest.raises(ValueError, match="no weights to set to zero"):
        mask.silence()


def test_karlos_small_image_is_enlarged_as_pillow_does():
    import numpy as np
    from PIL import Image

    plane = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    value = torch.from_numpy(plane).expand(1, 4, 4, 4)
    made = LowRes(resize="bicubic")(value, YES[:1], SIZE).spatial[0, 0]
    expected = torch.from_numpy(np.asarray(Image.fromarray(plane).resize((8, 8), Image.Resampling.BICUBIC)).copy())
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_a_label_is_an_embedding():
    condition = Label(3, 8)
    made = condition(torch.tensor([[2], [1]]), NO, SIZE)
    assert torch.equal(made.vector[0], condition.embedding.weight[2]) and not made.vector[1].any()
