"""A network as a graph: its operations, its target layer, the target's features."""
