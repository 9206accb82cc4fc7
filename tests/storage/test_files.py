"""Files that are written whole, on every system."""

import json
import os
import stat
import sys
from pathlib import Path, PureWindowsPath

import pytest

from composer.data.folder import _listed, _walk
from composer.storage.files import printable, read_text, write_atomically
from composer.storage.folder import read_model, write_model


@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens no folder")
def test_file_and_folder_reach_the_disk_in_this_order(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "new" / "a.txt", [], os.fsync

    def record(handle):
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        assert not folder or os.path.samestat(os.fstat(handle), path.parent.stat())
        synced.append(("folder" if folder else "file", path.exists()))
        fsync(handle)

    monkeypatch.setattr("os.fsync", record)
    write_atomically(path, b"new")
    assert synced == [("file", False), ("folder", True)]


def test_it_writes_where_a_folder_cannot_be_opened(tmp_path, monkeypatch):
    """As on Windows."""
    path, opens = tmp_path / "a.txt", os.open

    def refuse(name, *args, **kwargs):
        if Path(name).is_dir():
            raise PermissionError(13, "Permission denied", str(name))
        return opens(name, *args, **kwargs)

    monkeypatch.setattr("os.open", refuse)
    for data in (b"old", b"new"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_manifest_names_files_in_folders(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "words.txt").write_text("red\n")
    write_model(tmp_path, {"stages": []}, {}, "# x\n")
    assert '"words/words.txt"' in (tmp_path / "manifest.json").read_text()
    assert read_model(tmp_path)[0]["stages"] == []


def test_images_are_named_in_one_way_on_windows(monkeypatch):
    """Captions and columns are found by their image's name, wherever that name comes from."""
    monkeypatch.setattr("composer.data.folder.Path", PureWindowsPath)
    monkeypatch.setattr("os.walk", lambda _: [("photos\\cats", [], ["a.png"])])
    assert list(_walk("photos")) == ["photos/cats/a.png"]
    for name in ("cats/a.png", "cats\\a.png"):
        line = json.dumps({"file_name": name, "caption": "a cat"})
        assert _listed(Path("photos"), line, "line 1") == ("photos/cats/a.png", "a cat")


def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder, Path("/dev/zero")):
        with pytest.raises(ValueError, match="expected a file, found"):
            read_text(path)
        with pytest.raises(FileExistsError, match="which exists and is not a file"):
            write_atomically(path, b"a")
    assert pipe.is_fifo() and folder.is_dir()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_text(tmp_path / "missing")


def test_texts_are_read_in_utf8_and_within_bounds(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\xc3\xa9")
    assert read_text(path) == "a\né"
    assert read_text(path, 8) == "a\né"
    with pytest.raises(ValueError, match="at most 7 bytes, found more in"):
        read_text(path, 7)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not a text in UTF-8"):
        read_text(path)


def test_texts_for_people_act_on_nothing():
    assert printable("a\x1b[2J\u202eb\udcff é") == "a [2J b\ufffd é"
    assert printable("a\x1b[2J\u202eb\udcff é").encode()
