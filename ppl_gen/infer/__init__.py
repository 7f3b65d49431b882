"""Inference: EM and SVI as pure steps, their starts and stopping."""
