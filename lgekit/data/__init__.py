"""Cohorts: readers of public and own data, and the phantom."""
