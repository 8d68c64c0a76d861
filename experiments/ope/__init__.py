"""Offline policy evaluation: what a policy would have earned, from logs that another policy wrote."""
