"""Run directories: their paths, locks and records."""
