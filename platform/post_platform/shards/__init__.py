"""Shard format v1: tars of frames that any WebDataset reader opens, a Parquet index of byte ranges, a manifest."""
