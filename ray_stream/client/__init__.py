"""Producers, consumers and administration: cores that decide, shells that wait."""
