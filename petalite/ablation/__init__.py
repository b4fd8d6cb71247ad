"""Layer ablation: what quantizing each block costs, one block at a time, on the same images.

    found = ablate("runs/flowers/checkpoints/fp32", "flowers102", formats=("nf4", "int8"), out="runs/ablation")
    print(sentence(found))

`settings` lists what is kept, `passes` runs it and computes shared blocks once, `compare` turns what came out into
rows with intervals, `run` is the verb, `words` says in a sentence which differences are real.
"""

from petalite.ablation.run import ablate, check_formats
from petalite.ablation.words import cost, sentence, table

__all__ = ["ablate", "check_formats", "cost", "sentence", "table"]
