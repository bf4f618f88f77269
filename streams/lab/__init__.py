"""Trying rules on records that are there already, by the very steps that run live."""
