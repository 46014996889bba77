"""Bounds on a network over subdomains of a hull."""
