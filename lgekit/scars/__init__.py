"""Synthetic scars: where they are, what they look like, and the TorchIO transforms that paint them."""
