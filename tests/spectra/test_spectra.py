"""Decompositions: right, kept once, and never read when damaged."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablora.method.attach import attach
from ablora.method.member import Member
from ablora.method.targets import find_targets
from ablora.spec import AdapterSpec
from ablora.spectra import library as module
from ablora.spectra.decompose import decompose
from ablora.spectra.library import Library, weight_key
from ablora.store.atomic import Corrupted
from presets import method
from tiny import llama

WEIGHT = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 99))
def test_the_kept_triplets_make_up_their_part_of_the_weight(rows, columns, seed):
    weight = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    s = decompose(weight, torch.arange(min(rows, columns)))
    torch.testing.assert_close((s.u * s.sigma[:, None]).T @ s.v, weight, rtol=1e-10, atol=1e-10)
    assert (s.sigma.diff() <= 0).all()
    assert (s.u.gather(1, s.u.abs().argmax(1, keepdim=True)) > 0).all()


def test_half_precision_is_decomposed_in_float32():
    s = decompose(WEIGHT.bfloat16(), torch.arange(3))
    assert s.sigma.dtype == torch.float32
    torch.testing.assert_close(s.sigma, torch.linalg.svdvals(WEIGHT.bfloat16().float()))


def test_decomposed_once_and_extended_by_union(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "decompose", lambda w, i: calls.append(i.tolist()) or decompose(w, i))
    first = Library(tmp_path).spectrum(WEIGHT, torch.tensor([0, 1]))
    again = Library(tmp_path).spectrum(WEIGHT.clone(), torch.tensor([1]))
    assert len(calls) == 1
    assert torch.equal(first.u, again.u)
    more = Library(tmp_path).spectrum(WEIGHT, torch.tensor([14, 15]))
    assert len(calls) == 2
    assert more.indices.tolist() == [0, 1, 14, 15]
    assert more.positions(torch.tensor([15, 0])).tolist() == [3, 0]
    assert more.positions(torch.tensor([7])) is None
    assert Library(tmp_path).spectrum(WEIGHT, torch.tensor([0, 15])).indices.tolist() == [0, 1, 14, 15]
    assert len(calls) == 2


def test_a_pack_decomposes_each_weight_once_for_all_its_starts(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "decompose", lambda w, i: calls.append(weight_key(w)) or decompose(w, i))
    model, starts = llama(), ("pissa", "milora", "lora", "goat", "random_svd", "random_svd")
    members = [Member(method(name), 8, AdapterSpec(), seed) for seed, name in enumerate(starts)]
    attach(model, members, Library(tmp_path)).detach()
    assert len(calls) == len(set(calls)) == len(find_targets(model, AdapterSpec().targets))


def test_the_key_is_the_content():
    assert weight_key(WEIGHT) == weight_key(WEIGHT.clone())
    assert weight_key(WEIGHT) != weight_key(WEIGHT.bfloat16())
    assert weight_key(WEIGHT) != weight_key(WEIGHT.reshape(16, 24))


def _file(folder: Path) -> Path:
    (path,) = (folder / "spectra").glob("*.safetensors")
    return path


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_named_and_neither_used_nor_replaced(tmp_path, damage):
    Library(tmp_path).spectrum(WEIGHT, torch.tensor([0, 1]))
    path = _file(tmp_path)
    whole = path.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    broken = {"cut": whole[: len(whole) // 2], "flip": flipped, "empty": b""}[damage]
    path.write_bytes(broken)
    with pytest.raises(Corrupted, match=f"{path.name}.*delete this file"):
        Library(tmp_path).spectrum(WEIGHT, torch.tensor([0]))
    assert path.read_bytes() == broken
    path.unlink()
    assert len(Library(tmp_path).spectrum(WEIGHT, torch.tensor([0])).u) == 1


def _make(folder: Path) -> None:
    Library(folder).spectrum(WEIGHT, torch.tensor([0, 1]))


def test_processes_that_ask_at_once_get_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_make, args=(tmp_path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert _file(tmp_path).exists()
    assert not list((tmp_path / "spectra").glob(".*aside"))
