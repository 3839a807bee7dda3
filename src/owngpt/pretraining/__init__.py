"""The main job, assembled: from sources to a scored model folder, inside the time that was named.

data.collect → text.train_tokenizer → data.tokenize → train.make_plan → train.Trainer → evaluate.score_text → formats.save_model
"""

from owngpt.pretraining.job import TrainedModel
from owngpt.pretraining.start import train

__all__ = ["TrainedModel", "train"]
