"""Proofs checked again: certificates, and bounds that share no code with those that found them."""
