"""Showing what was found: figures, report.md, report.html, terminal tables, W&B."""
