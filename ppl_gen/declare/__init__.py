"""What a person writes: frozen, plain data; no torch, NumPy or Pyro."""
