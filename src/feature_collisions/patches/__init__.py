"""Section 4: patches of other images, their search, and composites of them."""
