"""On a CUDA device: a quantized checkpoint learns, and what learned on the GPU is what a CPU reads from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petalite.checkpoint import read_checkpoint, write_checkpoint
from petalite.data import Preprocess
from petalite.engine import load
from petalite.quantization import quantize
from petalite.recipe import TrainRecipe
from petalite.training import methods, train
from petalite.training.recovery import QuantizedStudent
from tests.tiny import tiny_checkpoint, tiny_images, tiny_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("method", ["qat", "qlora"])
@pytest.mark.parametrize("name", ["int8-channel", "int3", "int2-g128", "fp8", "nf4", "int8"])
def test_what_learns_on_the_gpu_is_what_is_written(tmp_path: Path, name: str, method: str) -> None:
    start = quantize(tiny_checkpoint(tmp_path / "parent"), name, tmp_path / "start")
    recipe = TrainRecipe(method=method)
    student = QuantizedStudent(start, recipe, torch.device("cuda"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in methods.trainable(student.model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).cuda())
        student.settle()
        pixels = Preprocess.from_config(start.config).normalize(tiny_pixels().cuda())
        expected = student.model.eval()(pixels).cpu()
    tensors, plan = student.finished(methods.trainable(student.model))
    write_checkpoint(tmp_path / "end", start.config, tensors, plan)
    end = read_checkpoint(tmp_path / "end")
    model = end.skeleton()
    model.load_state_dict(end.plain_tensors(), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels.cpu()), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "method"), [("int2", "qat"), ("int2", "qlora"), ("nf4", "qat")])
def test_accuracy_comes_back_on_the_gpu(tmp_path: Path, name: str, method: str) -> None:
    images, parent = tiny_images(tmp_path / "images"), tiny_checkpoint(tmp_path / "parent")
    start = quantize(parent, name, tmp_path / "start")
    recipe = TrainRecipe(method=method, epochs=12, batch_size=8, lr=5e-3, flip=False, augment="none")
    end = train(images, start.path, tmp_path / "out", recipe, device="cuda", workers=0)
    assert end.plan == start.plan
    assert load(end.path, "cuda").info.format == name
    last = (tmp_path / "out" / "train" / "metrics.csv").read_text().splitlines()[-1]
    assert float(last.split(",")[5]) > 0.9
