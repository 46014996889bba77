"""Measurements of a hull and its baselines (Tables 1 to 5, appendix B)."""
