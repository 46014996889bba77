"""Measuring a hull, and what it is compared with (Tables 1 to 5, appendix B)."""
