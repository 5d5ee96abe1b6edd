"""Running: one recipe to one run folder, exact resume, evaluation, records."""
