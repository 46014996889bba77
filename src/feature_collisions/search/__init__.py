"""Finding corners: losses (Eq. 1 to 6), what is optimised, and Lightning around it."""
