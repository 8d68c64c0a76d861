"""The stages of a run, one a file, in the order in which they run."""
