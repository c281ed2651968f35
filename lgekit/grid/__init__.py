"""Ablation grids: a YAML file of rows, run as notebooks and collected into tables."""
