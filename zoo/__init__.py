"""The library: registry, recipes, data, training, metrics and the `zoo` command."""
