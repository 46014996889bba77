"""Search for corners: losses (Eq. 1 to 6), parameterisations, and Lightning's training loop."""
