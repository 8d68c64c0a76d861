"""Policies side by side on the same judge campaigns: who is compared, how they play, what came of it."""
