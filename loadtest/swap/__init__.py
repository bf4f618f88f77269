"""Swaps of a model under load: what a request meets while the model that answers it is replaced."""
