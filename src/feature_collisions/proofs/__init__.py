"""What holds at every point: edges walked, bounds, linear programs."""
