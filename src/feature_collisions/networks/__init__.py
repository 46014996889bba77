"""Classifiers: loading, weights, heads, and the network inside a wrapper."""
