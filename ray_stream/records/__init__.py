"""Batch bytes: header, payload, checks. No files, no policy."""
