"""Low-rank updates over a frozen model."""
