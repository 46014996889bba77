"""Reports: figures, report.md, report.html, terminal tables, W&B."""
