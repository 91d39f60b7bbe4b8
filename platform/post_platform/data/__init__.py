"""From converted shards to training batches: the plan, its reader, augmentation, and the stream through Ray Data."""
