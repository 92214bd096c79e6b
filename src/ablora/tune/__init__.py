"""Optuna: trials that are runs, asked for and told by whoever has time for them."""
