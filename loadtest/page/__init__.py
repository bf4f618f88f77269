"""The page under a long look: a browser on a live demo, and whether either side grows."""
