"""The training loop: every method learns, and a run that was killed ends with the weights of one that was not."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from petalite.checkpoint import read_checkpoint, read_tensors
from petalite.errors import PetaliteError
from petalite.recipe import TrainRecipe
from petalite.training import loop, methods, train
from petalite.training.start import starting_point
from tests.tiny import tiny_checkpoint, tiny_images
from tests.training.stopping import stop_training

RECIPE = TrainRecipe(method="full", epochs=3, batch_size=8, lr=3e-3, flip=False, augment="light", precision="fp32")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("start") / "tiny", classes=("a", "b")).path


def learn(images: Path, start: Path, out: Path, **changes: object) -> dict[str, torch.Tensor]:
    recipe = dataclasses.replace(RECIPE, **changes)  # type: ignore[arg-type]
    return dict(train(images, start, out, recipe, device="cpu", workers=0).tensors)


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("method", ["head", "lora", "qlora", "full"])
def test_every_method_learns_and_ends_as_a_plain_checkpoint(
    images: Path, start: Path, tmp_path: Path, method: str
) -> None:
    train(images, start, tmp_path / "out", dataclasses.replace(RECIPE, method=method, epochs=6, lr=5e-3, precision="auto"),
          device="cpu", workers=0)  # fmt: skip
    checkpoint = read_checkpoint(tmp_path / "out" / "checkpoints" / "fp32")
    assert checkpoint.classes == ("daisy", "rose", "tulip")
    assert checkpoint.plan.format == "fp32"
    rows = (tmp_path / "out" / "train" / "metrics.csv").read_text().splitlines()
    assert rows[0] == "epoch,step,lr,train_loss,valid_loss,valid_top1,seconds"
    assert len(rows) == 7
    assert max(float(row.split(",")[5]) for row in rows[1:]) > 0.9


def test_the_head_alone_changes_nothing_else(images: Path, start: Path, tmp_path: Path) -> None:
    before, after = read_tensors(start), learn(images, start, tmp_path, method="head")
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.bias", "head.weight"]


def test_lora_is_merged_and_leaves_what_it_does_not_name(images: Path, start: Path, tmp_path: Path) -> None:
    before, after = read_tensors(start), learn(images, start, tmp_path, method="lora", targets=("qkv", "fc2"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"} | {
        f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in ("attn.qkv", "mlp.fc2")
    }


def test_merged_weights_compute_what_the_trained_model_computes(images: Path, start: Path) -> None:
    config, tensors = starting_point(start, classes=("daisy", "rose", "tulip"))
    model = methods.prepare(config, tensors, dataclasses.replace(RECIPE, method="lora"), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in methods.trainable(model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        expected = model.eval()(inputs)
    plain = methods.merged(model, methods.trainable(model))
    rebuilt = methods.prepare(config, plain, dataclasses.replace(RECIPE, method="full"), torch.device("cpu")).eval()
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_run_that_stops_anywhere_ends_with_the_same_weights(
    images: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stop: int
) -> None:
    """Three steps an epoch: the stops are within the first epoch, within the second, and at its end."""
    options = {"method": method, "save_minutes": 0.0, "dropout": 0.1, "augment": "rand"}
    whole = learn(images, start, tmp_path / "whole", **options)
    stop_training(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        learn(images, start, tmp_path / "parts", **options)
    monkeypatch.undo()
    resumed = learn(images, start, tmp_path / "parts", **options)
    assert_equal(whole, resumed)


def test_a_killed_process_resumes_to_the_same_weights(images: Path, start: Path, tmp_path: Path) -> None:
    whole = learn(images, start, tmp_path / "whole", epochs=40, save_minutes=0.0)
    command = [
        *(sys.executable, "-m", "petalite", "train", "--data", str(images), "--model", str(start), "--device", "cpu"),
        *("--method", "full", "--epochs", "40", "--batch-size", "8", "--lr", "3e-3", "--flip", "no"),
        *("--precision", "fp32", "--save-minutes", "0", "--out", str(tmp_path / "parts")),
    ]
    resume_point = tmp_path / "parts" / "train" / "checkpoints" / "last.pt"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as first:
        assert first.stderr is not None
        for line in first.stderr:  # killed in the middle of the work, not before it has begun
            if line.startswith("epoch 3/40"):
                os.kill(first.pid, signal.SIGKILL)
                break
        assert first.wait() == -signal.SIGKILL
    assert resume_point.exists()
    second = subprocess.run([*command, "--resume"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "train: resumed after" in second.stderr
    assert_equal(whole, read_tensors(tmp_path / "parts" / "checkpoints" / "fp32"))


def test_a_damaged_or_foreign_resume_point_is_named_and_passed_over(
    images: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = learn(images, start, tmp_path / "whole", epochs=1)
    point = tmp_path / "other" / "train" / "checkpoints" / "last.pt"
    learn(images, start, tmp_path / "other", epochs=1, lr=1e-4)
    assert_equal(whole, learn(images, start, tmp_path / "other", epochs=1))
    assert "belongs to another training" in capsys.readouterr().err
    point.write_bytes(b"not a checkpoint")
    assert_equal(whole, learn(images, start, tmp_path / "other", epochs=1))
    assert "is damaged" in capsys.readouterr().err


def test_passes_and_accumulation_do_not_change_the_result(images: Path, start: Path, tmp_path: Path) -> None:
    whole = learn(images, start, tmp_path / "whole", batch_size=8)
    parts = learn(images, start, tmp_path / "parts", batch_size=2, accumulate=4)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-4, msg=name)


def test_out_of_memory_halves_the_batch_and_says_so(
    images: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = learn(images, start, tmp_path / "whole", epochs=1)
    original = loop._Loop._backward

    def limited(self: loop._Loop, pixels: torch.Tensor, targets: torch.Tensor, count: int) -> float:
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, pixels, targets, count)

    monkeypatch.setattr(loop._Loop, "_backward", limited)
    parts = learn(images, start, tmp_path / "parts", epochs=1)
    said = capsys.readouterr().err
    assert "batch size halved to 4, 2 passes a step" in said
    assert "batch size halved to 2, 4 passes a step" in said
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-4, msg=name)

    def always(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop._Loop, "_backward", always)
    with pytest.raises(PetaliteError, match="out of memory with a single image"):
        learn(images, start, tmp_path / "none", epochs=1)


def test_two_processes_train_as_one_also_when_one_of_them_is_killed(images: Path, start: Path, tmp_path: Path) -> None:
    """24 images in batches of 5 x 2: the last batch has 4, so shares differ between steps too."""
    one = learn(images, start, tmp_path / "one", batch_size=10, epochs=20, augment="none")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"),
        *("-m", "petalite", "train", "--data", str(images), "--model", str(start), "--device", "cpu"),
        *("--method", "full", "--epochs", "20", "--batch-size", "5", "--lr", "3e-3", "--flip", "no"),
        *("--augment", "none", "--precision", "fp32", "--save-minutes", "0", "--out", str(tmp_path / "two")),
    ]
    options = {"text": True, "cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as first:  # type: ignore[call-overload]
        for line in first.stderr:
            if line.startswith("epoch 2/20"):
                os.kill(max(child.pid for child in psutil.Process(first.pid).children()), signal.SIGKILL)
                break
        first.stderr.read()
        assert first.wait(60) != 0  # the one that is left does not go on alone
    second = subprocess.run([*command, "--resume"], capture_output=True, **options, check=False)  # type: ignore[call-overload]
    assert second.returncode == 0, second.stderr[-2000:]
    assert second.stderr.count("train: resumed after") == 1
    two = read_tensors(tmp_path / "two" / "checkpoints" / "fp32")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


def test_divergence_is_an_error(images: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(PetaliteError, match=r"training diverged at step \d+ .* lower --lr"):
        learn(images, start, tmp_path, lr=1e30, clip_norm=0.0, epochs=3)


def test_class_weights_are_inverse_frequencies() -> None:
    class Images:
        splits = {"train": [type("S", (), {"target": target})() for target in (0, 0, 0, 1)]}  # noqa: RUF012
        classes = ("often", "seldom")

    assert loop._class_weights(Images()).tolist() == pytest.approx([2 / 3, 2.0])  # type: ignore[arg-type]


def test_checkpointing_computes_the_same(images: Path, start: Path, tmp_path: Path) -> None:
    plain = learn(images, start, tmp_path / "plain", epochs=1)
    saving = learn(images, start, tmp_path / "saving", epochs=1, checkpointing=True)
    for name in plain:
        torch.testing.assert_close(saving[name], plain[name], rtol=1e-3, atol=1e-4, msg=name)


def test_training_does_not_start_from_a_quantized_checkpoint(images: Path, start: Path, tmp_path: Path) -> None:
    from petalite.quantization import quantize

    quantize(start, "int8", tmp_path / "int8")
    with pytest.raises(
        PetaliteError, match=r"is quantized .int8.; use `petalite train` with --method qlora or qat, or start from its"
    ):
        learn(images, tmp_path / "int8", tmp_path / "out")


def test_a_larger_image_resamples_the_position_embedding(start: Path) -> None:
    config, tensors = starting_point(start, image_size=48)
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]
    assert tensors["pos_embed"].shape == (1, 1 + 6 * 6, 64)
