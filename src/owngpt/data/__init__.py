"""From files that a person names to batches of tokens: read, clean, de-duplicate, split, tokenize, batch."""
