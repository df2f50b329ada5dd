"""A decoder's whole step as one program of the compiled kernels."""
