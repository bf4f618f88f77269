"""The demo: a year of real flights, replayed in event-time order over the whole road."""
