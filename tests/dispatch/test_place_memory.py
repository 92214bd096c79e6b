"""What a pack may take on a machine: what its GPUs have free, as their driver says it."""

import pytest

from ablora.dispatch import memory
from ablora.dispatch.inline import Inline
from ablora.dispatch.local import Local

ANSWER = "0, GPU-aaa, 81920\n1, GPU-bbb, 40960\n2, GPU-ccc, 1024\n"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi, which no machine without a GPU has."""

    def answers(text: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return answers


@pytest.mark.parametrize(
    ("visible", "free"),
    [(None, [80, 40, 1]), ("1", [40]), ("2,0", [1, 80]), ("GPU-bbb", [40]), ("", []), ("7", [])],
)
def test_what_is_free_on_the_gpus_that_this_process_sees(driver, monkeypatch, visible, free):
    driver(ANSWER)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert memory.free_gpu_gib() == free


def test_a_pack_may_take_its_part_of_the_fullest_gpu(driver, monkeypatch):
    driver(ANSWER)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert Inline().memory_gib == 40
    assert Local(workers=2).memory_gib == 40
    assert Local(workers=3).memory_gib == 20, "one of the GPUs has two workers"


@pytest.mark.parametrize(("said", "code"), [("", 0), ("", 9), ("0, GPU-aaa, [N/A]\n", 0)])
def test_without_a_gpu_that_has_a_memory_of_its_own_it_is_the_machine_s(driver, said, code):
    driver(said, code)
    assert memory.host_gib() == Inline().memory_gib == 2 * (Local(workers=2).memory_gib or 0)
