"""Measurements: `make bench`. Figures are CPU time, or rates within one run; a machine is noisy, so compare ratios."""
