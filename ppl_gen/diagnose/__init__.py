"""Pictures of a fit."""

from ppl_gen.diagnose.plots import plot_classes, plot_history, plot_reconstructions

__all__ = ["plot_classes", "plot_history", "plot_reconstructions"]
