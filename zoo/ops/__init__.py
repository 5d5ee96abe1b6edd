"""Scan primitives: one function each, several backends behind it, all tested against the sequential definition."""
