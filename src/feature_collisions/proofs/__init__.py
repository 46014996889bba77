"""What holds at every point: edges walked exactly, bounds, linear programs."""
