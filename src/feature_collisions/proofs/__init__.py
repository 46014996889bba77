"""Proofs about every point of a hull: exact walks of edges, and bounds."""
