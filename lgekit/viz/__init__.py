"""Plots, figures of the paper, cohort summaries and notebook widgets."""
