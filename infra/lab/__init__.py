"""Where an engineer tries what would have been: over past streams, with the code that runs live."""
