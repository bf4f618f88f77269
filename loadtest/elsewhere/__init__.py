"""Clusters that jobs may go to, started here on loopback, in environments of their own."""
