"""Bounds on a piecewise linear network over pieces of a hull."""
