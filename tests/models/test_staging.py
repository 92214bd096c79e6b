"""A base on a node's own disk: copied once, checked, and left alone where it cannot be."""

import os
import shutil
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from ablora.models import content, staging
from ablora.models.staging import near

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "shared" / "base"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "merges.txt", "pytorch_model.bin"):
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


@pytest.fixture
def node(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    monkeypatch.setenv(staging.STAGE, "$NODE_DISK/bases")
    forget()
    return tmp_path / "node" / "bases" / f"ablora-{os.getuid()}"


def forget() -> None:
    """As a process that begins."""
    staging._near.cache_clear()
    content._content.cache_clear()


def copies(node: Path) -> list[Path]:
    return sorted(path for path in node.iterdir() if path.is_dir())


def test_a_copy_has_the_same_content_and_no_weights_twice(base, node, monkeypatch):
    copy = near(base)
    assert copies(node) == [copy]
    assert content.content_of(copy) == content.content_of(base)
    names = {path.name for path in copy.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "merges.txt", staging.RECORD}
    forget()
    monkeypatch.setattr(staging, "_copy", lambda *_: pytest.fail("copied again"))
    assert near(base) == copy


def test_nothing_is_copied_unless_it_is_asked_for(base, node, monkeypatch):
    monkeypatch.delenv(staging.STAGE)
    assert near(base) == base
    assert not node.exists()


def near_in_a_process(base: Path) -> tuple[Path, int]:
    copy = near(base)
    return copy, (copy / staging.RECORD).stat().st_ino


def test_processes_of_one_node_make_one_copy(base, node):
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        found = set(pool.map(near_in_a_process, [base] * 8))
    assert len(found) == 1
    assert len(copies(node)) == 1


def test_a_base_that_changed_is_another_copy(base, node):
    first = near(base)
    (base / "model.safetensors").write_bytes(b"other")
    assert near(base) != first
    assert content.content_of(near(base)) == content.content_of(base)


def test_a_full_disk_is_said_and_the_shared_folder_read(base, node, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 0))
    assert near(base) == base
    assert near(base) == base
    heard = capsys.readouterr().err
    assert heard.count("the disk is full: 0.0 GiB are left") == 1
    assert f"{base} is read where it is and not from $NODE_DISK/bases" in heard


def test_a_disk_that_fills_while_it_is_copied_to(base, node, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert near(base) == base
    assert "No space left on device" in capsys.readouterr().err
    assert not copies(node), "what was begun is removed"


@pytest.mark.parametrize("wanted", ["$NO_SUCH_VARIABLE", "relative"])
def test_a_place_that_is_none_on_this_node(base, node, wanted, monkeypatch, capsys):
    monkeypatch.setenv(staging.STAGE, wanted)
    assert near(base) == base
    assert f"{wanted} is no absolute path here" in capsys.readouterr().err


def test_what_a_cleaner_or_a_killed_process_left_is_made_again(base, node):
    copy = near(base)
    (copy / "merges.txt").unlink()
    left = copy.parent / f".{copy.name}-left"
    left.mkdir()
    forget()
    assert near(base) == copy
    assert (copy / "merges.txt").exists()
    assert not left.exists()


def test_a_disk_that_does_not_keep_what_was_written_is_not_read(base, node, capsys):
    copy = near(base)
    size = (copy / "model.safetensors").stat().st_size
    (copy / "model.safetensors").write_bytes(b"?" * size)
    forget()
    assert near(base) == base
    assert "does not read as it was written" in capsys.readouterr().err


@pytest.mark.usefixtures("node")
def test_a_base_that_is_read_from_its_copy_is_the_same_base(monkeypatch):
    from ablora.models.base import Embedded, load

    spec = Embedded(name="pico", dtype="float32")
    staged, name = spec.fingerprint(), load(spec).model.config.name_or_path
    assert name == str(near(spec.folder)) != str(spec.folder)
    monkeypatch.delenv(staging.STAGE)
    assert spec.fingerprint() == staged
