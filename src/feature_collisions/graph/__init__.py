"""A network as a graph: what it computes, its target layer, and the target's features there."""
