"""Examples as token ids: kept on disk, cut to length, packed into rows, dealt out in batches."""
