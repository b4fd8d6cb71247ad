"""Kill a study with SIGKILL at random moments, resume it each time, and compare with one that was never killed.

    python benchmarks/kill_and_resume.py --kills 5 --seed 0

The same final weights (bit by bit), accuracies and predictions are expected; timings differ, since they are measured.
The moments are drawn so that the kills spread over the whole study.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from petalite.files import read_json, write_text
from petalite.recipe import demo_recipe


def study(recipe: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start the study in a process of its own."""
    command = [sys.executable, "-m", "petalite", "run", str(recipe), "--out", str(out), "--device", "cpu", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outcome(out: Path) -> dict[str, object]:
    """What must not depend on having been killed."""
    weights = sorted(out.glob("checkpoints/*/model.safetensors"))
    results = read_json(out / "results.json")
    return {
        "weights": {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights},
        "accuracy": {row["name"]: row["accuracy"] for row in results["variants"]},
        "predictions": {path.name: path.read_text() for path in sorted(out.glob("predictions/*.csv"))},
    }


def main() -> int:
    """Run, kill, resume, compare; 0 when nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    changes = {
        "train.epochs": options.epochs,
        "train.save_minutes": 0.02,
        "variants": ["fp32", "nf4-fa2", "int8-sdpa"],
        "measure.seconds": 0.2,
        "measure.throughput_batches": [1, 8],
    }
    with tempfile.TemporaryDirectory() as folder:
        recipe, whole, parts = Path(folder) / "recipe.toml", Path(folder) / "whole", Path(folder) / "parts"
        write_text(recipe, demo_recipe().with_options(changes).to_toml())
        started = time.monotonic()
        if study(recipe, whole).wait() != 0:
            raise SystemExit("the study failed without being killed")
        lasted = time.monotonic() - started
        trained = read_json(whole / "run.json")["steps"]["train"]["seconds"]
        print(f"undisturbed: {lasted:.0f} s, of which training {trained:.0f} s", flush=True)
        for kill in range(options.kills):
            process = study(recipe, parts, "--resume")
            moment = draw.uniform(5, 2 * lasted / (options.kills + 1))
            try:
                process.wait(moment)
                print(f"kill {kill + 1}: the study had ended within {moment:.1f} s", flush=True)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                steps = read_json(parts / "run.json")["steps"] if (parts / "run.json").exists() else {}
                at = next((name for name, step in steps.items() if step["status"] == "running"), "between steps")
                print(f"kill {kill + 1}: after {moment:.1f} s, in: {at}", flush=True)
        if study(recipe, parts, "--resume").wait() != 0:
            raise SystemExit("the resumed study failed")
        expected, found = outcome(whole), outcome(parts)
        different = [name for name in expected if expected[name] != found[name]]
        print("the same" if not different else f"DIFFERENT: {', '.join(different)}")
        return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
