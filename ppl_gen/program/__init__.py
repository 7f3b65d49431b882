"""A declaration compiled to Pyro, and lowered to tensor graphs."""
