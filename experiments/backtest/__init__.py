"""The fitted response model on weeks that it has not seen, beside its peers on the same rows."""
