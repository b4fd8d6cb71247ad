"""Fine-tuning: one loop for head, LoRA, QLoRA and full training, resumable at any moment.

checkpoint = train("flowers102", "vit_base_patch16_224", out="runs/flowers", recipe=TrainRecipe(epochs=3))
"""

from petalite.training.loop import train
from petalite.training.start import starting_point

__all__ = ["starting_point", "train"]
