"""Data: the adapter contract, the generic data module, splits, cache, downloads and readers."""
