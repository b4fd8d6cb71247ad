"""What is wrong with a data set, found before it is trained on: every file is decoded once, in a few processes.

    report = check_data(open_data("flowers102"))
    data = data.without(report.unreadable)
    print("\\n".join(report.lines()))

Finds unreadable files, exact copies (equal bytes) and which of them cross the splits, the balance of the classes, the
images' sizes, and a fingerprint that is the same wherever the folder lies. What was learnt of the files is cached by
their names, sizes and times, so that a second check reads none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from petalite.console import track
from petalite.data.images import ImageError, decode
from petalite.data.samples import ImageData
from petalite.data.workers import in_order, usable_workers
from petalite.errors import PetaliteError
from petalite.files import cache_dir, read_json, write_json

# of one file: SHA-256 of its bytes, width, height, and why it cannot be read ("" when it can)
_Facts: TypeAlias = "tuple[str, int, int, str]"
_CHUNK = 32
_IMBALANCE = 10


@dataclass(frozen=True)
class DataReport:
    """What a check found. Paths are those of the data's samples."""

    name: str
    images: dict[str, int]  # split -> images
    classes: dict[str, dict[str, int]]  # class name -> split -> images
    unreadable: dict[Path, str]  # file -> why, in one line
    copies: tuple[tuple[Path, ...], ...]  # groups of files with equal bytes
    copies_across_splits: tuple[tuple[Path, ...], ...]  # those of them in more than one split
    sizes: dict[str, tuple[int, int]]  # "min", "median", "max" -> (width, height), each side by itself
    fingerprint: str  # SHA-256 over classes, splits, relative paths and contents
    root: Path

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON; paths are relative to the data's folder."""
        return {
            "name": self.name,
            "images": self.images,
            "classes": self.classes,
            "unreadable": [{"path": self._short(path), "error": why} for path, why in self.unreadable.items()],
            "copies": [[self._short(path) for path in group] for group in self.copies],
            "copies_across_splits": [[self._short(path) for path in group] for group in self.copies_across_splits],
            "sizes": {what: list(size) for what, size in self.sizes.items()},
            "fingerprint": self.fingerprint,
        }

    def lines(self) -> list[str]:
        """The report for a person."""
        splits = ", ".join(f"{split} {count:,}" for split, count in self.images.items())
        lines = [f"{self.name}: {sum(self.images.values()):,} images in {len(self.classes)} classes ({splits})"]
        for split in self.images:
            counts = {name: per_split[split] for name, per_split in self.classes.items()}
            fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            lines.append(f"{split}: {counts[fewest]} ({fewest}) to {counts[most]} ({most}) images a class")
            if split == "train" and counts[most] >= _IMBALANCE * max(1, counts[fewest]):
                lines[-1] += "; uneven: consider class weights"
        if self.sizes:
            shown = ", ".join(f"{what} {width} x {height}" for what, (width, height) in self.sizes.items())
            lines.append(f"sizes in pixels: {shown}")
        lines.append(f"unreadable files: {len(self.unreadable) or 'none'}")
        lines += [f"  {why}" for why in self.unreadable.values()]
        lines.append(f"copies: {len(self.copies) or 'no'} groups of equal files")
        if self.copies_across_splits:
            lines.append(
                f"copies across splits: {len(self.copies_across_splits)} (one split repeats images of another)"
            )
            lines += ["  " + " = ".join(map(self._short, group)) for group in self.copies_across_splits]
        lines.append(f"fingerprint: {self.fingerprint}")
        return lines

    def _short(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def check_data(data: ImageData, cache: bool = True) -> DataReport:
    """Decode every image of `data` and report. `cache`: reuse what is known of files that have not changed since.

    A file that cannot be read, or that crashes its decoder, is part of the report and never ends the check.
    """
    paths = sorted({sample.path for samples in data.splits.values() for sample in samples})
    stored = cache_dir() / "checks" / f"{_listing_key(data.root, paths)}.json"
    facts = _read_cache(stored, len(paths)) if cache else None
    if facts is None:
        facts = _inspect_all(paths)
        if cache:
            with suppress(PetaliteError):  # a cache that cannot be written costs time, not the check
                write_json(stored, facts)
    return _report(data, dict(zip(paths, facts, strict=True)))


def _report(data: ImageData, facts: dict[Path, _Facts]) -> DataReport:
    """The report that follows from the facts, without touching a file."""
    split_of = {sample.path: split for split, samples in data.splits.items() for sample in samples}
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, (digest, _, _, error) in facts.items():
        if not error:
            groups[digest].append(path)
    copies = tuple(tuple(group) for group in groups.values() if len(group) > 1)
    across = tuple(group for group in copies if len({split_of[path] for path in group}) > 1)
    counts = {split: Counter(sample.target for sample in samples) for split, samples in data.splits.items()}
    widths = [width for _, width, _, error in facts.values() if not error]
    heights = [height for _, _, height, error in facts.values() if not error]
    measures = (("min", min), ("median", median), ("max", max)) if widths else ()
    return DataReport(
        name=data.name,
        images={split: len(samples) for split, samples in data.splits.items()},
        classes={
            name: {split: counts[split][target] for split in data.splits} for target, name in enumerate(data.classes)
        },
        unreadable={path: error for path, (_, _, _, error) in facts.items() if error},
        copies=copies,
        copies_across_splits=across,
        sizes={what: (int(measure(widths)), int(measure(heights))) for what, measure in measures},
        fingerprint=_fingerprint(data, facts),
        root=data.root,
    )


def _fingerprint(data: ImageData, facts: dict[Path, _Facts]) -> str:
    """One digest of classes and of every file's split, class, relative path and content."""
    lines = [
        f"{sample.path.relative_to(data.root).as_posix()}\t{split}\t{sample.target}\t{facts[sample.path][0]}"
        for split, samples in data.splits.items()
        for sample in samples
    ]
    return hashlib.sha256(json.dumps([data.folders, data.classes, sorted(lines)]).encode()).hexdigest()


def _listing_key(root: Path, paths: Sequence[Path]) -> str:
    """A digest that changes when a file is added, removed, renamed or written to."""
    digest = hashlib.sha256(str(root.resolve()).encode())
    for path in paths:
        try:
            status = path.stat()
            stamp = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            stamp = "missing"
        digest.update(f"\0{path.relative_to(root)}\0{stamp}".encode("utf-8", errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _read_cache(stored: Path, expected: int) -> list[_Facts] | None:
    """The cached facts, or None when there are none or they are damaged: then they are simply found out again."""
    try:
        facts = [(str(digest), int(width), int(height), str(why)) for digest, width, height, why in read_json(stored)]
    except (PetaliteError, TypeError, ValueError):
        return None
    return facts if len(facts) == expected else None


def _inspect_all(paths: Sequence[Path]) -> list[_Facts]:
    """The facts of every file, in order."""
    return list(track(_inspections(paths), "check images", total=len(paths)))


def _inspections(paths: Sequence[Path]) -> Iterator[_Facts]:
    """The facts of each file as they are found, in order, with a process per core."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    for chunk, found in in_order(_inspect_chunk, chunks, usable_workers(None)):
        if found is not None:
            yield from found
            continue
        # a decoder took its process down: one by one, to see which file it was
        for (path,), facts in in_order(_inspect_chunk, [[path] for path in chunk], 1):
            yield facts[0] if facts else ("", 0, 0, f"{path} crashes the image decoder")


def _inspect_chunk(paths: Sequence[Path]) -> list[_Facts]:
    return [_inspect(path) for path in paths]


def _inspect(path: Path) -> _Facts:
    try:
        content = path.read_bytes()
    except OSError as error:
        return "", 0, 0, f"{path} cannot be read: {error.strerror or error}"
    digest = hashlib.sha256(content).hexdigest()
    try:
        width, height = decode(path).size
    except ImageError as error:
        return digest, 0, 0, str(error)
    return digest, width, height, ""
