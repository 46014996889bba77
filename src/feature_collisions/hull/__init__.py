"""The hull of the corners: its points, their outputs and their statistics."""
