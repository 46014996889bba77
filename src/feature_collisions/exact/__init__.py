"""Corners without a search: linear and quadratic programs (section 2)."""
