"""Benches: they print raw times and ratios, and assert nothing. ``make bench`` runs them all."""
