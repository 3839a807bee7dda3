"""Fine-tuning: from any GPT to one that does its owner's task. Each method is a loss and a dataset around ``train/``."""
