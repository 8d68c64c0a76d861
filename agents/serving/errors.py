"""What goes wrong in serving; every message names the place and gives an example."""


class BundleError(ValueError):
    """An exported policy is incomplete, altered, of another version or not signed by whom it should be."""


class DecisionInputError(ValueError):
    """Users or context are not described as the policy needs."""
