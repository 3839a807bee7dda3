"""Text and tokens: tokenizers (train, load, incremental decoding), chat templates, language statistics."""
