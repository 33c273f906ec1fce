"""The main job on real data: write, kill, stop, start again, consume, verify.

Owns: the story (`acts`, `delays`), the data (`flights`), the judgement (`verdict`), and showing it.
Refuses: anything but the public API, so that it proves what a user gets.
"""
