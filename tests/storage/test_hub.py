"""Models of the hub, with the hub's own client against a hub in memory."""

import json
import logging
import pickle
import threading
from contextlib import contextmanager

import pytest
import torch

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.prior.interface import Prior
from composer.storage import hub as hub_module
from composer.storage.finding import askable_conditions, find_model
from composer.storage.folder import digest
from composer.storage.pretrained import offline
from tests.conftest import TINY, talkative
from tests.storage.fake_hub import FakeHub

NAME = "somebody/tiny"


@contextmanager
def serving():
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub and an empty cache; the working directory holds no model."""
    with serving() as server:
        for name, value in {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.chdir(tmp_path)
        hub_module._say_commit.cache_clear()
        yield server


@pytest.fixture
def pushed(hub, cascade):
    """The commit of the tiny model on the hub."""
    return cascade.push(NAME, card="# tiny\n").rpartition("/")[2]


def weights(model):
    return model.stages[0].weights().state_dict()


def equal(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def change(hub, name, make):
    """Changes a file of the newest commit, and where it is not the manifest the manifest too."""
    files = list(hub.repos[NAME].values())[-1]
    manifest = json.loads(files["manifest.json"])
    return hub.commit(NAME, {name: make(manifest if name == "manifest.json" else files[name])})


def test_what_is_pushed_is_loaded_with_equal_weights(hub, cascade):
    address = cascade.push(NAME, message="First", private=True, card="# tiny\n")
    (commit,) = hub.repos[NAME]
    assert address == f"{hub.address}/{NAME}/commit/{commit}"
    assert hub.private[NAME] in ("private", True)
    assert hub.repos[NAME][commit].keys() == {"base.safetensors", "config.json", "manifest.json", "README.md"}
    assert hub.repos[NAME][commit]["README.md"] == b"# tiny\n"
    loaded = Cascade.load(f"{NAME}@{commit}", network=True)
    assert equal(loaded, cascade)
    assert loaded.sha256 == digest(find_model(f"{NAME}@{commit}") / "manifest.json")


def test_a_commit_keeps_its_weights_and_no_revision_means_the_newest(hub, cascade, pushed, caplog):
    assert equal(Cascade.load(NAME, network=True), cascade)
    assert f"{NAME}@{pushed}" in caplog.text
    caplog.clear()
    other = talkative(TINY)
    with torch.no_grad():
        next(other.stages[0].denoiser.parameters()).add_(1)
    newest = other.push(NAME).rpartition("/")[2]
    assert newest != pushed and not equal(other, cascade)
    assert equal(Cascade.load(f"{NAME}@{pushed}", network=True), cascade)
    assert not caplog.records
    for _ in range(2):
        assert equal(Cascade.load(NAME, network=True), other)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and f"{NAME}@{newest}" in record.getMessage()


def test_the_second_time_no_network_is_needed(hub, cascade, pushed):
    assert askable_conditions(NAME, network=True) == ["palette", "intensity"]
    hub.asked.clear()
    assert equal(Cascade.load(NAME), cascade)
    assert equal(Cascade.load(f"{NAME}@{pushed}"), cascade)
    assert equal(Cascade.load(f"{NAME}@{pushed}", network=True), cascade)
    assert not hub.asked
    with offline():
        assert equal(Cascade.load(NAME, network=True), cascade)
    assert not hub.asked


def test_a_hub_that_is_away_leaves_the_copy_in_the_cache(hub, cascade, pushed, monkeypatch, caplog):
    Cascade.load(NAME, network=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert equal(Cascade.load(NAME, network=True), cascade)
    assert "using the cached model (HF_HUB_OFFLINE is set)" in caplog.text


def test_without_the_network_the_error_says_how_to_allow_it(hub, pushed):
    hub.asked.clear()
    with pytest.raises(FileNotFoundError, match=r"somebody/tiny.*--allow-network, in Python network=True"):
        Cascade.load(NAME)
    assert not hub.asked
    with pytest.raises(FileNotFoundError) as error:
        Cascade.load("models/a/b")
    assert "--allow-network" not in str(error.value)


@pytest.mark.parametrize("name", ["nobody/nothing", f"{NAME}@{'0' * 40}", f"{NAME}@v1", "somebody/ti--ny"])
def test_what_the_hub_has_not_is_told_in_one_line(hub, pushed, name):
    with pytest.raises((FileNotFoundError, ValueError), match=name.partition("@")[0]) as error:
        Cascade.load(name, network=True)
    assert "\n" not in str(error.value)


def test_an_interrupted_fetch_is_told_offline_and_goes_on_online(hub, cascade, pushed):
    find_model(f"{NAME}@{pushed}", network=True)
    folder = find_model(f"{NAME}@{pushed}")
    for place in (folder, folder.parents[1] / "snapshots" / pushed):
        (place / "base.safetensors").unlink()
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"base\.safetensors, which is not in the cache.*hf download"):
        Cascade.load(f"{NAME}@{pushed}")
    assert equal(Cascade.load(f"{NAME}@{pushed}", network=True), cascade)


def test_a_folder_here_goes_before_the_hub(hub, cascade, pushed):
    other = talkative({**TINY, "name": "here"})
    other.save(NAME)
    hub.asked.clear()
    assert Cascade.load(NAME, network=True).spec["name"] == "here"
    assert not hub.asked


def test_only_what_the_manifest_lists_is_fetched(hub, cascade, pushed):
    commit = hub.commit(NAME, {"extra.py": b"1 / 0", "model.pt": pickle.dumps(1), "more.safetensors": b"x"})
    assert equal(Cascade.load(NAME, network=True), cascade)
    listed = {"base.safetensors", "config.json", "manifest.json", "README.md"}
    assert hub.fetched() == listed
    assert {path.name for path in find_model(f"{NAME}@{commit}").iterdir()} == listed


def test_a_changed_file_is_refused(hub, pushed):
    change(hub, "base.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"base\.safetensors is damaged or was changed"):
        Cascade.load(NAME, network=True)


@pytest.mark.parametrize(
    "name", ["run.py", "weights.pt", "model.bin", "../../evil.json", "a/../b.json", "/etc/a.json", ".hidden.json"]
)
def test_a_manifest_that_lists_anything_else_is_refused_before_a_fetch(hub, pushed, name):
    change(hub, "manifest.json", lambda listed: json.dumps({**listed, name: "0" * 64}).encode())
    with pytest.raises(ValueError, match="this one's manifest lists"):
        Cascade.load(NAME, network=True)
    assert hub.fetched() == {"manifest.json"}


@pytest.mark.parametrize("name, size", [("base.safetensors", hub_module.MAX_BYTES + 1), ("manifest.json", 5_000_000)])
def test_what_is_too_large_is_refused_before_a_fetch(hub, pushed, name, size):
    hub.says_size[name] = size
    with pytest.raises(ValueError, match="expected at most"):
        Cascade.load(NAME, network=True)
    assert name not in hub.fetched()


@pytest.fixture
def reading(saved):
    """Loads the tiny model as one that reads a file of its own."""

    def load(name):
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_bytes(b"a red cube")
        (saved / "notes.png").write_bytes(b"not a part of the model")
        model = Cascade.load(saved)
        words = {"class_path": "decomposers.Tokens", "init_args": {"words": f"model:{name}"}}
        model.spec["decomposers"] = {"caption": words}
        return model

    return load


def test_a_loaded_model_is_pushed_with_its_card_and_the_files_that_it_names(hub, reading):
    commit = reading("caption/words.txt").push(NAME).rpartition("/")[2]
    files = hub.repos[NAME][commit]
    assert files["README.md"] == b"# tiny\n" and files["caption/words.txt"] == b"a red cube"
    assert files.keys() == {"README.md", "base.safetensors", "caption/words.txt", "config.json", "manifest.json"}
    folder = find_model(NAME, network=True)
    assert (folder / "caption" / "words.txt").read_bytes() == b"a red cube"
    assert not any(path.is_symlink() for path in folder.rglob("*"))  # a link's target has neither name nor suffix


def test_a_disk_without_hard_links_gets_copies(hub, cascade, pushed, monkeypatch):
    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    assert equal(Cascade.load(NAME, network=True), cascade)
    folder = find_model(NAME)
    assert not any(path.is_symlink() or path.name.startswith(".") for path in folder.iterdir())


def test_a_model_with_files_that_are_not_fetched_is_not_pushed(hub, reading):
    model = reading("caption/words.pt")
    with pytest.raises(ValueError, match=r"manifest lists caption/words\.pt"):
        model.push(NAME)
    model.folder = None
    with pytest.raises(ValueError, match=r"reads caption/words\.pt in its folder, but was loaded from none"):
        model.push(NAME)
    assert not hub.repos


def test_a_push_without_a_network_says_so(hub, cascade, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"somebody/tiny was not pushed.*HF_HUB_OFFLINE is set"):
        cascade.push(NAME)
    with pytest.raises(ValueError, match="expected owner/name"):
        cascade.push(f"{NAME}@main")


def test_the_token_goes_to_the_hub_alone(hub, cascade, pushed):
    with serving() as elsewhere:
        elsewhere.repos, hub.weights_from = hub.repos, elsewhere.address
        assert equal(Cascade.load(NAME, network=True), cascade)
        assert elsewhere.fetched() == {"base.safetensors"} and elsewhere.tokens == {None}
    assert "Bearer hf_secret" in hub.tokens


def test_a_command_draws_with_a_model_of_the_hub(hub, pushed, photos, capsys):
    words = ["compose", "--model", f"{NAME}@{pushed}", "--palette", photos[0], "--out", "drawn"]
    assert main(words) != 0
    assert "--allow-network" in capsys.readouterr().err
    assert main([*words, "--allow-network"]) == 0
    hub.asked.clear()
    assert main(words) == 0
    assert not hub.asked


def test_a_prior_is_pushed_and_loaded(hub):
    prior = Prior.load("scenes_prior_ar")
    address = prior.push("somebody/prior")
    pinned = f"somebody/prior@{address.rpartition('/')[2]}"
    again = Prior.load(pinned, network=True)
    first, second = prior.state_dict(), again.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    with pytest.raises(ValueError, match="expected a model with stages"):
        Cascade.load(pinned)
