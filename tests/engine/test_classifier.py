"""A loaded classifier: what it takes, what it answers, what it says of itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petalite.device import resolve_compute, resolve_device
from petalite.engine import Classifier, load
from petalite.engine.classifier import most_likely, softmax
from petalite.errors import PetaliteError
from tests.tiny import CLASSES, tiny_checkpoint, tiny_pixels


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return load(tiny_checkpoint(tmp_path_factory.mktemp("c") / "tiny").path, "cpu")


def test_every_kind_of_image_gives_the_same_answer(classifier: Classifier, tmp_path: Path) -> None:
    image = Image.effect_noise((40, 50), 80).convert("RGB")
    image.save(tmp_path / "a.png")
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded.getvalue(), image, np.asarray(image)]
    answers = classifier.predict(sources, top_k=2)
    alone = [classifier.predict(source, top_k=2)[0] for source in sources]
    assert len(answers) == 5
    # a product may round the rows of a batch differently from one another, by its place in a tile
    for answer in [*answers, *alone]:
        assert [one.label for one in answer] == [one.label for one in answers[0]]
        assert [one.score for one in answer] == pytest.approx([one.score for one in answers[0]], abs=1e-6)
    assert all(answer == alone[0] for answer in alone)


def test_scores_are_probabilities_in_order(classifier: Classifier) -> None:
    answer = classifier.predict(Image.new("RGB", (32, 32)), top_k=5)[0]
    assert {prediction.label for prediction in answer} == set(CLASSES)
    scores = [prediction.score for prediction in answer]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)
    assert all(CLASSES[prediction.index] == prediction.label for prediction in answer)


def test_scores_and_ranks_are_those_of_pytorch() -> None:
    logits = 4 * torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    found = softmax(logits.numpy())
    _, indices = logits.softmax(-1).topk(7)
    torch.testing.assert_close(torch.from_numpy(found), logits.softmax(-1))
    assert [most_likely(row, 7) for row in found] == indices.tolist()
    assert softmax(np.array([[1e4, -1e4]], np.float32)).tolist() == [[1.0, 0.0]]
    assert most_likely(np.array([0.1, 0.4, 0.1, 0.4], np.float32), 3) == [1, 3, 0]
    assert most_likely(np.array([0.5, np.nan, 0.6], np.float32), 9) == [2, 0, 1]


def test_pixels_and_normalized_pixels_give_the_same_logits(classifier: Classifier) -> None:
    pixels = tiny_pixels()
    logits = classifier.logits(pixels)
    assert logits.dtype == torch.float32
    normalized = classifier.logits(classifier.preprocess.normalize(pixels))
    torch.testing.assert_close(normalized, logits, rtol=1e-4, atol=1e-5)


def test_a_batch_of_another_size_is_refused(classifier: Classifier) -> None:
    with pytest.raises(PetaliteError, match=r"a batch must be \(N, 3, 32, 32\), got \(1, 3, 31, 32\)"):
        classifier.logits(torch.zeros(1, 3, 31, 32))


def test_no_answers_are_refused(classifier: Classifier) -> None:
    with pytest.raises(PetaliteError, match="top_k must be at least 1"):
        classifier.predict([], top_k=0)
    assert classifier.predict([]) == []


def test_it_says_what_it_is(classifier: Classifier) -> None:
    info = classifier.info.as_dict()
    assert (info["format"], info["attention"], info["compute"], info["device"]) == ("fp32", "openvino", "fp32", "cpu")
    assert info["image_size"] == [32, 32]


@pytest.mark.parametrize(
    ("format", "device", "compute"),
    [
        ("fp32", "cpu", "fp32"), ("fp32", "cuda", "fp32"), ("bf16", "cuda", "bf16"), ("fp16", "cuda", "fp16"),
        ("fp16", "cpu", "bf16"), ("nf4", "cpu", "bf16"), ("nf4", "cuda", "fp16"), ("int8", "cuda", "fp16"),
    ],
)  # fmt: skip
def test_compute_is_chosen_by_format_and_device(format: str, device: str, compute: str) -> None:
    assert resolve_compute("auto", format, torch.device(device)) == compute
    assert resolve_compute("fp32", format, torch.device(device)) == "fp32"


@pytest.mark.parametrize(
    ("device", "says"), [("gpu", "unknown device 'gpu'"), ("mps", "not supported"), ("cuda:99", "CUDA|does not exist")]
)
def test_devices_that_are_not_there(device: str, says: str) -> None:
    with pytest.raises(PetaliteError, match=says):
        resolve_device(device)
