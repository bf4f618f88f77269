"""What the log says to the world: a fold over its commits, and the outbox that publishes it."""
