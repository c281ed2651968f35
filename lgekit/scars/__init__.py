"""Synthetic scars, painted by TorchIO transforms."""
