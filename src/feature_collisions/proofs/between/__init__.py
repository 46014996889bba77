"""Bounds between neighbouring points of a segment, for networks too large for bounds of pieces."""
