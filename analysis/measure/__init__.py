"""Factors and spectra to numbers: what an adapter adds to its base. No forward pass (definitions: docs/measures.md)."""
