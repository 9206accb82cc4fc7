"""YOLO and RF-DETR against their libraries' own postprocessing, on tiny weights in the true layouts."""

import importlib.util
import json
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from decomposers import RFDETR, YOLO
from decomposers.instances import InstanceMaps, paint
from decomposers.yolo import contained


class Plain(InstanceMaps):
    names = ("sphere", "cube")

    def forward(self, batch):
        raise NotImplementedError


def squares():
    """Two 8-pixel squares of categories 1 and 2, the second shifted by 4 pixels in the second row."""
    maps = torch.zeros(2, 2, 32, 32)
    maps[:, :, 4:12, 4:12] = 1
    maps[0, :, 16:24, 16:24] = 2
    maps[1, :, 16:24, 20:28] = 2
    return maps


def test_distance_counts_what_is_where():
    a, b = squares()[:1], squares()[1:]
    decomposer = Plain()
    assert decomposer.distance(a, a) == 0
    assert decomposer.distance(a, b).item() == pytest.approx(1 - (1 + 32 / 96) / 2)  # 4 of 8 + 4 columns are shared
    renamed = torch.stack([a[:, 0], a[:, 1] * 3], 1)
    assert decomposer.distance(a, renamed) == 0
    nothing = torch.zeros(1, 2, 32, 32)
    assert decomposer.distance(nothing, nothing) == 0
    assert decomposer.distance(a, nothing) == 1
    both = decomposer.distance(torch.cat([a, a]), torch.cat([b, nothing]))
    assert both[0] == decomposer.distance(a, b)[0] and both[1] == 1


def test_preview_tells_instances_apart():
    maps = torch.zeros(1, 2, 16, 16)
    maps[0, 0] = 1
    maps[0, 1, :, :8], maps[0, 1, :, 8:] = 1, 2
    maps[0, :, :2] = 0
    picture = Plain().preview(maps)
    assert picture.min() >= -1 and picture.max() <= 1
    assert (picture[0, :, 0, 0] == -1).all()  # nothing is black
    assert (picture[0, :, 8, 7] == 1).all()  # the border is white
    assert (picture[0, :, 8, 2] - picture[0, :, 8, 12]).abs().max() > 0.2
    assert (Plain().preview(F.interpolate(maps, (160, 160), mode="nearest")) == 1).all(1).sum() > 160  # names


def test_the_better_score_stands_in_front():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 1:] = True, True
    category, ids = paint(masks, torch.tensor([7, 3]), (4, 4))
    assert category[:, 0].tolist() == [7, 7, 3, 3] and ids[:, 0].tolist() == [1, 1, 2, 2]
    assert not paint(masks[:0], torch.tensor([], dtype=torch.int64), (4, 4)).any()


@pytest.fixture(scope="module")
def ultralytics():
    if importlib.util.find_spec("ultralytics") is None:  # importing it to see would change the process
        pytest.skip("the extra yolo is not installed")
    with contained():
        from ultralytics.nn import tasks
    return tasks


def checkpoint(tasks, path, name="yolov8n-seg"):
    """A small network with loud random heads, so that it finds something, saved as ultralytics saves."""
    torch.manual_seed(0)
    network = tasks.SegmentationModel(f"{name}.yaml", nc=3, verbose=False)
    network.names = {0: "cat", 1: "dog", 2: "hat"}
    head = network.model[-1]
    for parameter in head.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for scores in head.cv3:
        scores[-1].bias.data.zero_()
    torch.save({"epoch": -1, "ema": None, "model": network, "train_args": {"task": "segment"}}, path)
    return path


def test_yolo_agrees_with_ultralytics(ultralytics, tmp_path, batch):
    with contained():
        from ultralytics.utils.nms import non_max_suppression
        from ultralytics.utils.ops import process_mask
    yolo = YOLO(str(checkpoint(ultralytics, tmp_path / "seg.pt")), size=64, confidence=0.3, most=10)
    assert yolo.names == ("cat", "dog", "hat")
    image = F.interpolate(batch["image"], (64, 64))
    got = yolo({"image": image})
    predictions, prototypes = yolo.network(image / 2 + 0.5)[0]
    expected = torch.zeros(2, 2, 64, 64)
    for row, found in enumerate(non_max_suppression(predictions, 0.3, 0.7, max_det=10, nc=3)):
        assert len(found) > 1
        masks = process_mask(prototypes[row], found[:, 6:], found[:, :4], (64, 64), upsample=True)
        for number, (mask, category) in reversed(list(enumerate(zip(masks.bool(), found[:, 5], strict=True)))):
            expected[row, 0][mask], expected[row, 1][mask] = category + 1, number + 1
    assert expected[:, 1].unique().numel() > 2
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["yolo11n-seg", "yolo26n-seg"])
def test_yolo_reads_other_versions_and_sizes(ultralytics, tmp_path, name):
    yolo = YOLO(str(checkpoint(ultralytics, tmp_path / "seg.pt", name)), size=64, confidence=0.0, most=3)
    image = torch.rand(2, 3, 48, 30) * 2 - 1
    maps = yolo({"image": image})
    assert maps.shape == (2, 2, 48, 30) and maps[:, 0].max() <= 3 and maps[:, 1].max() <= 3
    torch.testing.assert_close(maps[1:], yolo({"image": image[1:]}))


def test_yolo_leaves_the_process_as_it_was(ultralytics, tmp_path):
    path = checkpoint(ultralytics, tmp_path / "seg.pt")
    before = torch.save, torch.serialization.get_safe_globals(), repr(torch.tensor(1 / 3)), repr(np.array(1 / 3))
    environment = dict(os.environ)
    YOLO(str(path))
    after = torch.save, torch.serialization.get_safe_globals(), repr(torch.tensor(1 / 3)), repr(np.array(1 / 3))
    assert before[0] is after[0] and set(before[1]) == set(after[1]) and before[2:] == after[2:]
    quiet = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "ULTRALYTICS_SAFE_LOAD": "1"}
    assert dict(os.environ) == environment | quiet
    assert torch.save.__module__ == "torch.serialization"


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_yolo_refuses_what_it_should(ultralytics, tmp_path):
    trap = {"model": Trap(tmp_path / "sprung")}
    torch.save(trap, tmp_path / "trap.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(trap, protocol=2))
    for name in ("trap.pt", "bare.pt"):
        with pytest.raises(ValueError, match="refused"):
            YOLO(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()
    detector = ultralytics.DetectionModel("yolov8n.yaml", nc=3, verbose=False)
    torch.save({"model": detector}, tmp_path / "boxes.pt")
    with pytest.raises(ValueError, match=r"Detect, expected a segmentation"):
        YOLO(str(tmp_path / "boxes.pt"))
    with pytest.raises(FileNotFoundError, match=r"YOLO needs .*\.pt"):
        YOLO(str(tmp_path / "absent.pt"))


def test_yolo_says_which_versions_it_reads(ultralytics, tmp_path, monkeypatch):
    """YOLOv5's checkpoints pickle classes of a module of its own, ``models.yolo``."""
    v5 = type("SegmentationModel", (torch.nn.Linear,), {"__module__": "models.yolo"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "models", SimpleNamespace())
        patch.setitem(sys.modules, "models.yolo", SimpleNamespace(SegmentationModel=v5))
        torch.save({"model": v5(1, 1)}, tmp_path / "yolov5s-seg.pt")
    with pytest.raises(ValueError, match="expected a checkpoint of YOLO v8 or later"):
        YOLO(str(tmp_path / "yolov5s-seg.pt"))


@pytest.fixture(scope="module")
def rfdetr_folder(tmp_path_factory):
    """A tiny RF-DETR with random weights, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.RfDetrConfig().backbone_config
    changes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 8, "image_size": 64}
    stages = {
        "out_indices": None,
        "out_features": ["stage2", "stage4"],
        "num_windows": 2,
        "window_block_indexes": [0, 1],
    }
    config = transformers.RfDetrConfig(
        backbone_config=type(backbone)(**{**backbone.to_dict(), **changes, **stages}),
        d_model=32,
        decoder_layers=2,
        num_queries=10,
        decoder_ffn_dim=64,
        group_detr=1,
        projector_scale_factors=[1.0],
        num_labels=5,
    )
    network = transformers.RfDetrForInstanceSegmentation(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "class_embed" in name:
                parameter += torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("rfdetr")
    network.save_pretrained(folder)
    return folder


def test_rfdetr_agrees_with_transformers(rfdetr_folder, batch):
    from transformers.models.rf_detr.image_processing_rf_detr import RfDetrImageProcessor

    decomposer = RFDETR(str(rfdetr_folder), size=64, confidence=0.3, most=20)
    assert len(decomposer.names) == 5
    image = F.interpolate(batch["image"], (64, 64))
    got = decomposer({"image": image})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    output = decomposer.network(pixel_values=(image / 2 + 0.5 - mean) / std)
    found = RfDetrImageProcessor().post_process_instance_segmentation(
        output, threshold=0.3, target_sizes=[(64, 64)] * 2, top_k=20
    )
    for row, result in enumerate(found):
        labels = {segment["id"]: segment["label_id"] + 1 for segment in result["segments_info"]}
        assert labels
        expected = torch.zeros(64, 64)
        for number, label in labels.items():
            expected[result["segmentation"] == number] = label
        torch.testing.assert_close(got[row, 0], expected)
        theirs = result["segmentation"]
        for number in labels:  # ids are other numbers for the same pixels
            ids = got[row, 1][theirs == number].unique()
            assert len(ids) == 1 and ((got[row, 1] == ids) == (theirs == number)).all()


def test_rfdetr_resizes_and_keeps_rows_apart(rfdetr_folder):
    decomposer = RFDETR(str(rfdetr_folder), size=60, confidence=0.3)
    assert decomposer.size == 64  # whole windows of patches
    image = torch.rand(2, 3, 40, 24) * 2 - 1
    maps = decomposer({"image": image})
    assert maps.shape == (2, 2, 40, 24)
    torch.testing.assert_close(maps[1:], decomposer({"image": image[1:]}))


def test_rfdetr_says_what_is_missing(rfdetr_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"RFDETR needs config\.json"):
        RFDETR(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dpt"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="expected an rf_detr network, found dpt"):
        RFDETR(str(tmp_path))
