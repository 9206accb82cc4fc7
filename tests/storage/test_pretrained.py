import pickle
import socket

import pytest
import torch
from safetensors.torch import save_file

from composer.storage import pretrained
from composer.storage.pretrained import load_tensors, locate


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Names resolve nowhere, the cache is empty; counts the tries."""
    tries = []

    def refuse(*args, **kwargs):
        tries.append(args)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tries


def test_local_paths_and_assets_are_found(tmp_path, monkeypatch):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.safetensors").touch()
    monkeypatch.setattr(pretrained, "_ASSETS", tmp_path)
    found = tmp_path / "small" / "a.safetensors"
    assert locate(str(found), wanted="weights", who="Depth") == found
    assert locate("asset:small/a.safetensors", wanted="weights", who="Depth") == found


@pytest.mark.parametrize("source", ["nowhere/model.safetensors", "asset:nowhere.safetensors"])
def test_a_missing_file_is_named_with_who_wants_it(source):
    with pytest.raises(FileNotFoundError, match=r"Depth needs the small weights: .*nowhere.*path of a local copy"):
        locate(source, wanted="the small weights", who="Depth")


@pytest.mark.parametrize("source", ["hub:owner/name", "hub:owner/name:file.safetensors", "hub:name@main"])
def test_a_hub_name_states_its_revision(source):
    with pytest.raises(ValueError, match="Depth: expected hub:owner/name@revision"):
        locate(source, wanted="weights", who="Depth")


@pytest.mark.parametrize("source", ["hub:owner/name@abc123:model.safetensors", "hub:owner/name@abc123"])
@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_error_is_quick_and_says_what_to_do(source, offline, no_network, monkeypatch):
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"Depth needs model\.safetensors.*hf download owner/name .*abc123"):
        locate(source, wanted="model.safetensors", who="Depth")
    assert len(no_network) <= (0 if offline else 2)  # the hub's client would try six times


def test_the_hub_cache_is_used_without_a_network(no_network, tmp_path):
    snapshot = tmp_path / "cache" / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    with pytest.raises(FileNotFoundError):  # a folder that lacks its weights is not taken for whole
        locate(f"hub:owner/name@{'a' * 40}", wanted="weights", who="Depth")
    (snapshot / "model.safetensors").touch()
    assert locate(f"hub:owner/name@{'a' * 40}", wanted="weights", who="Depth") == snapshot
    assert locate(f"hub:owner/name@{'a' * 40}:config.json", wanted="x", who="Depth") == snapshot / "config.json"
    assert len(no_network) <= 2


def test_tensors_come_back_from_both_formats(tmp_path):
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(5)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "nested.ckpt")
    for name in ("x.safetensors", "x.pt", "nested.ckpt"):
        found = load_tensors(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


class Trap:
    def __reduce__(self):
        return print, ("code ran",)


def test_code_in_a_file_does_not_run(tmp_path, capsys):
    torch.save({"a": torch.zeros(1), "b": Trap()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Trap(), protocol=2))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("zip.pt", "plain.pkl", "module.pt"):
        with pytest.raises(ValueError, match="is refused"):
            load_tensors(tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


def test_damaged_files_and_other_contents_are_told(tmp_path):
    save_file({"a": torch.zeros(100)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_tensors(tmp_path / "cut.safetensors")
    torch.save({"a": torch.zeros(10_000)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for length in (0, 3, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is refused"):
            load_tensors(tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "absent.pt")
    torch.save((torch.zeros(2), torch.ones(2)), tmp_path / "pair.th")
    assert {name: x.tolist() for name, x in load_tensors(tmp_path / "pair.th").items()} == {"0": [0, 0], "1": [1, 1]}
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected named tensors, found list"):
        load_tensors(tmp_path / "list.pt")
