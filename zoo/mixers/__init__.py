"""Layers that mix along the sequence, (B, L, D) to (B, L, D), under one protocol."""
