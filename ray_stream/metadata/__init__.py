"""The controller's mind: topics, placement, epochs. Pure machines, no I/O."""
