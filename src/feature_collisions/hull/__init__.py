"""The hull of the corners: its points, what they are taken for, and where it is kept."""
