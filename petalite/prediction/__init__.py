"""Predictions at scale: any number of images in, a CSV, JSONL or Parquet file out; killed and resumed, nothing is lost.

    from petalite.prediction import predict
    predict("runs/flowers/checkpoints/int8", ["photos/", "shards/*.tar"], "predictions.parquet", resume=True)

sources → units (chunks of files, tar shards) → batches → rows → a part a unit → one file. A part that is written is
never computed again, whoever computes it: this machine (`run`), or a Ray cluster (`cluster`).
"""

from petalite.prediction.rows import COLUMNS, TOP, class_folders, row, rows_of, write_predictions
from petalite.prediction.run import predict
from petalite.prediction.sources import expand

__all__ = ["COLUMNS", "TOP", "class_folders", "expand", "predict", "row", "rows_of", "write_predictions"]
