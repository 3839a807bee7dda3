"""Model folders in and out: the Hugging Face layout, and the card that describes a model."""
