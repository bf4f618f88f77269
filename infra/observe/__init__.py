"""What a running process says of itself to those who keep it running: metrics, readiness, liveness."""
