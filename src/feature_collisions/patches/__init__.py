"""Section 4: patches of other images, the nearest to a seed's, and composites of them."""
