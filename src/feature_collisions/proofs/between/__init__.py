"""Bounds between neighbouring points of a segment, for networks too large for other bounds."""
