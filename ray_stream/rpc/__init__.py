"""The seam between processes: messages, service protocols and their encoding."""
