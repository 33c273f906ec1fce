"""The group coordinator's mind: members, assignments, committed offsets. Pure, no I/O."""
