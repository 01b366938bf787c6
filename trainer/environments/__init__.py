"""Tools for training and evaluation, and the environments that the package comes with."""
