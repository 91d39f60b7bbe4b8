"""The POST platform: official datasets in, shards, one balanced mixture, training, official scores out."""
