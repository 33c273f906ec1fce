"""The simulator and its parts: a disk that forgets, a network that errs, a clock that obeys."""
