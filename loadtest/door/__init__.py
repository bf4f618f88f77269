"""The door under load: events over HTTP a second, and whether any that was acknowledged is lost."""
