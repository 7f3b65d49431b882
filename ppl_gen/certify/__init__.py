"""Certificates: a program and its parameters held against the reference's formulas."""
