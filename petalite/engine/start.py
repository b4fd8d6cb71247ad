"""Where a classifier comes from: a checkpoint that has run on this processor before starts again without PyTorch.

classifier = load("runs/demo/checkpoints/int8-channel")     # the first time: seconds, by petalite.engine.loading
classifier = load("runs/demo/checkpoints/int8-channel")     # from then on, on a CPU: from what is kept of it

PyTorch and timm take seconds and hundreds of megabytes to find out what does not change: that the tensors fit the model,
that the CPU engine computes it, and in which precision. So the answers are kept beside the compiled graphs (on a CPU,
for a checkpoint that the CPU engine runs), named by the hash of the checkpoint's files, what was asked for, the
processor, and the versions of OpenVINO and Petalite. Only a graph that is not on disk has PyTorch imported after all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petalite import __version__
from petalite.data.preprocess import Preprocess
from petalite.device import surely_cpu
from petalite.engine.classifier import Classifier, Info
from petalite.engine.processor import COMPUTES, Processor, this_processor
from petalite.errors import PetaliteError
from petalite.files import cache_dir, disk_bytes, read_json, sha256, write_json

if TYPE_CHECKING:
    from petalite.checkpoint import Checkpoint
    from petalite.engine.weights import Network

#: What of a folder decides what is computed.
_FILES = ("*.json", "*.safetensors")


def load(
    path: str | Path | Checkpoint,
    device: str = "auto",
    attention: str = "auto",
    compute: str = "auto",
    threads: int | None = None,
    engine: str = "auto",
) -> Classifier:
    """Load a checkpoint folder of any format and make it ready to run.

    device: auto, cpu, cuda, cuda:N; cuda:all and cuda:0,1 spread batches over several GPUs. attention: auto, math, sdpa,
    fa2, efficient, cudnn, petalite (the fused engine's own). compute: auto, fp32, fp16, bf16, int8, fp8.
    threads: how many of a CPU's cores work (None: those that this process may use). engine: auto, fused (NVIDIA GPUs),
    openvino (CPUs), module.
    Raises PetaliteError for a damaged checkpoint, and for a device, format, attention, compute or engine that cannot run
    here.
    """
    start = None
    ours = engine in ("auto", "openvino") and attention in ("auto", "openvino") and compute in ("auto", *COMPUTES)
    if isinstance(path, (str, Path)) and ours and surely_cpu(device):
        start = Start.of(Path(path), compute)
        if start is not None and (classifier := start.again(threads)) is not None:
            return classifier
    from petalite.engine import loading

    classifier = loading.load(path, device, attention, compute, threads, engine)
    if start is not None and classifier.info.engine == "openvino":
        start.keep(classifier)
    return classifier


@dataclass(frozen=True)
class Start:
    """A checkpoint folder as the CPU engine would start it here. digest: of its files; file: where it is kept."""

    folder: Path
    digest: str
    processor: Processor
    file: Path

    @classmethod
    def of(cls, folder: Path, compute: str) -> Start | None:
        """compute: what is asked for. None where OpenVINO is not installed, or the folder cannot be read."""
        try:
            from petalite.engine.openvino_runtime import ov

            digest = files_digest(folder)
        except (ImportError, OSError):
            return None
        processor = this_processor()
        facts = json.dumps([digest, compute, processor.describe(), ov.get_version(), __version__])
        name = hashlib.sha256(facts.encode()).hexdigest()[:32]
        return cls(folder, digest, processor, cache_dir() / "openvino" / f"{name}.json")

    def again(self, threads: int | None) -> Classifier | None:
        """The classifier as it was, with graphs that are read from disk as they are needed; None where none was kept.

        Raises PetaliteError for threads below 1.
        """
        try:
            kept = read_json(self.file)
            info = Info(**_tuples(kept["info"]), checkpoint=str(self.folder), disk_bytes=disk_bytes(self.folder))
            preprocess = Preprocess(**_tuples(kept["preprocess"]))
            classes, graphs = tuple(map(str, kept["classes"])), str(kept["graphs"])
        except (PetaliteError, OSError, KeyError, TypeError):  # there is none, or it is damaged: it is made again
            return None
        from petalite.engine.cpu import OnCpu
        from petalite.engine.openvino_cache import CompiledCache, used

        used(self.file)
        runner = OnCpu(
            self._network, info.compute, threads, self.processor, image_size=info.image_size, scales=info.scales,
            cache=CompiledCache(graphs),
        )  # fmt: skip
        return Classifier(runner, preprocess, classes, info)

    def keep(self, classifier: Classifier) -> None:
        """Keep what was found out. A disk that is full or a folder that cannot be written only costs the next start."""
        from petalite.engine.cpu import OnCpu

        runner = classifier.runner
        if not isinstance(runner, OnCpu) or runner.cache is None:
            return
        info = {name: value for name, value in classifier.info.as_dict().items() if name not in _OF_THE_FOLDER}
        kept = {"info": info, "preprocess": asdict(classifier.preprocess), "classes": classifier.classes}
        try:
            if files_digest(self.folder) == self.digest:  # it may have been replaced while it was read
                write_json(self.file, {**kept, "graphs": runner.cache.name})
        except (PetaliteError, OSError):
            return

    def _network(self) -> Network:
        """What a graph that is not on disk is made from."""
        from petalite.checkpoint import read_checkpoint
        from petalite.engine.weights import read_network

        return read_network(read_checkpoint(self.folder))


#: Of a classifier's info, what depends on where the checkpoint lies and not on what is in it.
_OF_THE_FOLDER = ("checkpoint", "disk_bytes")


def files_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's files. Raises OSError where they cannot be read."""
    files = sorted(path for pattern in _FILES for path in folder.glob(pattern))
    if not files:
        raise FileNotFoundError(folder)
    return hashlib.sha256("\n".join(f"{path.name} {sha256(path)}" for path in files).encode()).hexdigest()


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
