"""Training: from token batches to trained weights, in the time that was named, through crashes and interruptions."""
