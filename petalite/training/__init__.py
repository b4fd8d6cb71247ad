"""Fine-tuning: one loop for head, LoRA, QLoRA, full and quantized training, resumable at any moment.

checkpoint = train("flowers102", "vit_base_patch16_224", out="runs/flowers", recipe=TrainRecipe(epochs=3))
"""

from petalite.training.loop import train_from
from petalite.training.run import train
from petalite.training.start import check_start, layers_of, start_checkpoint, starting_point

__all__ = ["check_start", "layers_of", "start_checkpoint", "starting_point", "train", "train_from"]
