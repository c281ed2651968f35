"""The detector: image and text encoders, their training, zero-shot reading and captions."""
