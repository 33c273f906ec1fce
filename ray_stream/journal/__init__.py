"""A machine on one of our own logs: replay, append, snapshots."""
