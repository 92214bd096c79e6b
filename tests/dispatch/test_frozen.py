"""The code of jobs: what git sees, by content; and what an installed package has."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ablora.dispatch import frozen
from ablora.spec import BadInput


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    root = tmp_path / "checkout"
    package = root / "src" / "ablora"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (root / "conf").mkdir()
    (root / "conf" / "a.yaml").write_text("a: 1")
    (package / "conf").symlink_to("../../conf")
    (root / ".gitignore").write_text("*.pyc\nruns/\n")
    (root / "runs").mkdir()
    (root / "runs" / "big.bin").write_bytes(b"0" * 4096)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "add", "src"], cwd=root, check=True)
    monkeypatch.setitem(sys.modules, "ablora", SimpleNamespace(__file__=str(package / "__init__.py")))  # type: ignore[arg-type]
    return root


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}


def test_tracked_as_they_lie_untracked_too_and_nothing_ignored(checkout, tmp_path):
    (checkout / "src/ablora/__init__.py").write_text("changed = 1")
    (checkout / "src/ablora/new.py").write_text("")
    source = frozen.freeze(tmp_path / "code")
    assert source.name == "src"
    assert files(source.parent) == {".gitignore", "conf/a.yaml", "src/ablora/__init__.py", "src/ablora/new.py"}
    assert (source / "ablora/__init__.py").read_text() == "changed = 1"
    assert (source / "ablora/conf").is_symlink()
    assert (source / "ablora/conf/a.yaml").read_text() == "a: 1"
    status = subprocess.run(["git", "status", "--short"], cwd=checkout, capture_output=True, text=True).stdout
    assert "AM src/ablora/__init__.py" in status, "the user's index is as it was"


def test_equal_code_is_one_folder_and_other_code_another(checkout, tmp_path):
    first = frozen.freeze(tmp_path / "code")
    assert frozen.freeze(tmp_path / "code") == first
    (checkout / "conf" / "a.yaml").write_text("a: 2")
    second = frozen.freeze(tmp_path / "code")
    assert second != first
    assert (first / "ablora/conf/a.yaml").read_text() == "a: 1"
    assert len(list((tmp_path / "code").iterdir())) == 2


def test_a_deleted_file_is_not_missed_and_a_checkout_full_of_data_is_refused(checkout, tmp_path, monkeypatch):
    (checkout / "src/ablora/__init__.py").unlink()
    frozen.freeze(tmp_path / "code")
    (checkout / "data.bin").write_bytes(b"0" * 2**20)
    monkeypatch.setattr(frozen, "MOST_MIB", 0.5)
    with pytest.raises(BadInput, match=r"its largest file is data\.bin"):
        frozen.freeze(tmp_path / "code")


def test_without_git_what_jobs_need(checkout, tmp_path):
    subprocess.run(["rm", "-rf", ".git"], cwd=checkout, check=True)
    (checkout / "src/ablora/__pycache__").mkdir()
    (checkout / "src/ablora/__pycache__/x.pyc").write_bytes(b"")
    source = frozen.freeze(tmp_path / "code")
    assert files(source.parent) == {"conf/a.yaml", "src/ablora/__init__.py"}
    assert (source / "ablora/conf").is_symlink()
