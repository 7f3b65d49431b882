"""Which declaration the data speak for: a grid of candidates, fitted side by side and compared."""
