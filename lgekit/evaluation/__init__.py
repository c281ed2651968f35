"""Metrics with intervals, comparison of ablation rows, baselines and realism of scars."""
