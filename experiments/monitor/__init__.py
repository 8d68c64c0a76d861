"""Watching a deployed policy: spend against plan, drift, and whether what it goes by still holds."""
