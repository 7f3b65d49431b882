"""The Fit, its queries, its folder on disk, and the way to ArviZ."""
