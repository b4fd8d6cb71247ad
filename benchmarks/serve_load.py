"""The server under load: throughput against what decoding and engine do without HTTP, overload, and faults.

    python benchmarks/serve_load.py runs/q/int8-channel --photos ../shared/data/flowers102/test --requests 5000
    python benchmarks/serve_load.py runs/q/int8-channel --photos … --overload 10 --seconds 60
    python benchmarks/serve_load.py runs/q/int8-channel --photos … --faults
    python benchmarks/serve_load.py runs/q/int8-channel --total                # adds up the slices in the CSV

Each run is a row of the CSV, so that 100,000 requests may be sent in slices. `direct` is the same decoding and the same
engine in as many processes of as many threads, with no server between, measured in the same run before and after the load.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import time
from array import array
from collections import Counter
from importlib import metadata
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from result_files import machine_name
from serve_client import Client, photo_requests
from serve_faults import faults
from serve_server import Server

CLIENTS = 64


def main() -> int:
    """Run what is asked for, print it and add it to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--photos", type=Path, help="a folder with JPEGs, searched all the way down")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--direct", type=int, default=600, help="images of each measurement without HTTP; 0: none")
    parser.add_argument("--overload", type=float, default=0, help="times the capacity")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--total", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--serve", default="", help="further options of petalite serve, e.g. '--workers 2'")
    options = parser.parse_args()
    if options.total:
        return total(options)
    if options.photos is None:
        parser.error("--photos is needed")
    if options.faults:
        rows = faults(options.checkpoint, photo_requests(options.photos), options.serve.split())
        write(options, "serve-faults", rows)
        return int(any(not row["held"] for row in rows))
    row = overload(options) if options.overload else load(options)
    write(options, "serve-overload" if options.overload else "serve-load", [row])
    return 0


def load(options: argparse.Namespace) -> dict[str, Any]:
    """64 clients that ask again as soon as they are answered."""
    requests = photo_requests(options.photos)
    with Server([options.checkpoint], *options.serve.split()) as server:
        info = server.info()
        settings = (info["workers"]["wanted"], info["limits"]["max_batch"], info["limits"]["max_pixels"])
        before = direct(options, *settings)
        client = Client("127.0.0.1", server.port, CLIENTS)
        statuses, seconds = Counter[int](), array("d")
        client.run(requests, 2 * CLIENTS, lambda *_: None)

        def record(status: int, took: float, head: bytes, body: bytes) -> None:
            statuses[status] += 1
            seconds.append(took)

        taken = client.run(requests, options.requests, record)
        client.close()
        resident = memory(server, taken)
        after = direct(options, *settings)
    rate = options.requests / taken
    without = [value for value in (before, after) if value]
    return {
        **about(info),
        "clients": CLIENTS,
        "requests": options.requests,
        "failed": options.requests - statuses[200],
        "seconds": round(taken, 2),
        "requests_per_s": round(rate, 1),
        "direct_before": round(before, 1),
        "direct_after": round(after, 1),
        "share": round(rate * len(without) / sum(without), 3) if without else "",
        **percentiles(seconds),
        **resident,
    }


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """So many times the capacity, whatever is answered: who is served, who is refused, how long anybody waits."""
    requests = photo_requests(options.photos)
    with Server([options.checkpoint], *options.serve.split()) as server:
        info = server.info()
        client = Client("127.0.0.1", server.port, CLIENTS)
        capacity = 1500 / client.run(requests, 1500, lambda *_: None)
        client.close()
        client = Client("127.0.0.1", server.port, 1000)
        statuses, served, refused = Counter[int](), array("d"), array("d")

        def record(status: int, took: float, head: bytes, body: bytes) -> None:
            statuses[status] += 1
            (served if status == 200 else refused).append(took)

        rate = options.overload * capacity
        sent, skipped = client.run_at(requests, rate, options.seconds, record)
        client.close()
        resident = memory(server, options.seconds)
    longest = max([*served, *refused])
    return {
        **about(info),
        "capacity_per_s": round(capacity, 1),
        "asked_per_s": round(rate, 1),
        "seconds": options.seconds,
        "sent": sent,
        "not_sent": skipped,
        "ok": statuses[200],
        "refused_429": statuses[429],
        "refused_503": statuses[503],
        "other": sent - statuses[200] - statuses[429] - statuses[503],
        "served_per_s": round(statuses[200] / options.seconds, 1),
        "deadline_s": info["limits"]["deadline_s"],
        "longest_s": round(longest, 3),
        **percentiles(served),
        "p99_refused_ms": percentiles(refused)["p99_ms"],
        **resident,
    }


def direct(options: argparse.Namespace, processes: int, max_batch: int, max_pixels: int) -> float:
    """Images/s of the same decoding and engine without a server, in as many processes."""
    if not options.direct:
        return 0.0
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1, timeout=120)  # one that could not begin is not waited for
    each = max_batch * max(1, options.direct // (processes * max_batch))  # whole batches: the server's are full as well
    arguments = (options.checkpoint, options.photos, each, max_batch, max_pixels, processes, barrier)
    running = [context.Process(target=_direct, args=arguments) for _ in range(processes)]
    for process in running:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    for process in running:
        process.join()
    return each * processes / (time.perf_counter() - started)


def _direct(
    checkpoint: Path, photos: Path, images: int, max_batch: int, max_pixels: int, processes: int, barrier: Barrier
) -> None:
    import os

    import torch

    from petalite.engine import load as load_checkpoint
    from petalite.engine.threads import usable_threads
    from petalite.serve.pixels import read_pixels

    threads = max(1, usable_threads() // processes)
    torch.set_num_threads(threads)  # as the server tells its workers: what resizes images would take every core, twice
    classifier = load_checkpoint(checkpoint, threads=threads)
    files = sorted(photos.rglob("*.jpg"))
    bodies = [files[index % len(files)].read_bytes() for index in range(images)]
    classifier.logits(torch.zeros(max_batch, 3, *classifier.info.image_size, dtype=torch.uint8))
    read_pixels(bodies[0], classifier.preprocess, max_pixels)
    barrier.wait()
    for start in range(0, images, max_batch):
        chunk = bodies[start : start + max_batch]
        pixels = torch.stack([read_pixels(body, classifier.preprocess, max_pixels) for body in chunk])
        classifier.named(classifier.logits(pixels), 5)
    os._exit(0)  # the end of an interpreter with torch takes a while, and is no part of this


def total(options: argparse.Namespace) -> int:
    """Print the sum of all slices in the CSV."""
    with path_of(options, "serve-load").open(newline="") as file:
        rows = list(csv.DictReader(file))
    requests, failed = (sum(int(row[name]) for row in rows) for name in ("requests", "failed"))
    seconds = sum(float(row["seconds"]) for row in rows)
    worst = max(float(row["p99_ms"]) for row in rows)
    print(f"{len(rows)} slices, {requests} requests, {failed} failed, {requests / seconds:.1f}/s, worst p99 {worst} ms")
    return int(failed > 0)


def about(info: dict[str, Any]) -> dict[str, Any]:
    """What was served."""
    model = info["models"][0]
    return {
        "checkpoint": model["name"],
        "engine": model["engine"],
        "compute": model["compute"],
        "workers": info["workers"]["wanted"],
        "max_batch": info["limits"]["max_batch"],
    }


def percentiles(seconds: array[float]) -> dict[str, float]:
    """p50, p95, p99 and the longest, ms."""
    ordered = sorted(seconds) or [0.0]
    at = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
    named = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in at.items()}
    return {name: round(1000 * value, 1) for name, value in {**named, "max_ms": ordered[-1]}.items()}


def memory(server: Server, seconds: float) -> dict[str, float]:
    """Resident MB of server and workers over the last `seconds`: after a minute (or a fifth of them), at the end, at most."""
    now = server.rss_mb[-1][0]
    samples = [(at - (now - seconds), value) for at, value in server.rss_mb if at >= now - seconds]
    early = min(60.0, seconds / 5)
    first = next((value for at, value in samples if at >= early), samples[0][1])
    most = max(value for _, value in samples)
    return {"rss_early_mb": round(first), "rss_end_mb": round(samples[-1][1]), "rss_most_mb": round(most)}


def path_of(options: argparse.Namespace, name: str) -> Path:
    """The CSV of this processor and these versions."""
    versions = "_".join(f"{package}-{metadata.version(package)}" for package in ("torch", "uvicorn"))
    return Path(options.out / f"{name}_{options.checkpoint.name}_{machine_name()}_{versions}.csv")


def write(options: argparse.Namespace, name: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows and add them to the CSV."""
    path = path_of(options, name)
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*(f"{key} {value}" for key, value in row.items()), sep=", ", flush=True)
    print(path)


if __name__ == "__main__":
    raise SystemExit(main())
