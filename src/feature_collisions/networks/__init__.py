"""Classifiers: loading them, cutting them at the target layer, the target's features there."""
