"""Compiled graphs on disk: the same answers, found again by content, made again where they do not fit."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from petalite.engine import load, loading, weights
from petalite.engine.cpu import open_on_cpu
from petalite.engine.openvino_cache import CompiledCache, fingerprint
from petalite.engine.processor import this_processor
from tests.tiny import tiny_checkpoint, tiny_pixels


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETALITE_CACHE", str(tmp_path / "cache"))


def test_a_second_start_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    first = open_on_cpu(checkpoint, "fp32", 1)
    logits = first.forward(tiny_pixels(9))
    assert first.report()["cached_batches"] == []
    monkeypatch.setattr(weights, "read_network", lambda *_: pytest.fail("the compiled graph was not found"))
    copy = replace(checkpoint, path=tmp_path / "elsewhere")
    second = open_on_cpu(copy, "fp32", 2)  # threads are no part of what is compiled
    torch.testing.assert_close(second.forward(tiny_pixels(9)), logits, rtol=1e-5, atol=1e-6)
    assert second.report()["cached_batches"] == [1, 8]


def test_what_decides_a_graph_is_in_its_name(tmp_path: Path) -> None:
    checkpoint, processor = tiny_checkpoint(tmp_path / "tiny"), this_processor()
    changed = {**checkpoint.tensors, "head.bias": checkpoint.tensors["head.bias"] + 1}
    names = {
        fingerprint(checkpoint, "fp32", processor),
        fingerprint(checkpoint, "bf16", processor),
        fingerprint(checkpoint, "fp32", replace(processor, int8="none")),
        fingerprint(replace(checkpoint, tensors=changed), "fp32", processor),
        fingerprint(replace(checkpoint, plan=replace(checkpoint.plan, merge=(1, 0))), "fp32", processor),
    }
    assert len(names) == 5


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    logits = open_on_cpu(checkpoint, "fp32", 1).forward(tiny_pixels(1))
    (path,) = (tmp_path / "cache" / "openvino").glob("*-1.blob")
    size = path.stat().st_size
    path.write_bytes(b"nonsense")
    again = open_on_cpu(checkpoint, "fp32", 1)
    torch.testing.assert_close(again.forward(tiny_pixels(1)), logits)
    assert again.report()["cached_batches"] == [] and path.stat().st_size > size / 2  # not to the byte the same


def test_the_oldest_make_room_and_a_folder_that_cannot_be_written_is_borne(tmp_path: Path) -> None:
    class Blob:
        def export_model(self) -> io.BytesIO:
            return io.BytesIO(bytes(100))

    cache = CompiledCache("a", tmp_path / "room", limit=250)
    for name in ("1", "2", "3"):
        cache.keep(name, Blob())
    assert len(list((tmp_path / "room").iterdir())) == 2
    assert (tmp_path / "room" / "a-3.blob").exists()
    (tmp_path / "file").write_text("")
    CompiledCache("a", tmp_path / "file").keep("1", Blob())
    assert CompiledCache("a", tmp_path / "file").load("1", {}) is None


def test_a_cache_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    folder = tiny_checkpoint(tmp_path / "tiny").path
    logits = load(folder, "cpu").logits(tiny_pixels(1))
    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(loading, "load", refused)
    again = load(folder, "cpu")
    torch.testing.assert_close(again.logits(tiny_pixels(1)), logits)
    assert again.report()["cached_batches"] == [1]
