"""Shells: the hosts that own logs, and the Ray actors around them."""
