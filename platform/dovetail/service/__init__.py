"""Use cases of the control plane, and the contract in which they answer."""
