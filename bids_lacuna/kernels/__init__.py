"""The arithmetic that every connectome subject costs."""

from bids_lacuna.kernels.cpu import GROUP, add_fisher_z, compile_for, quantize, seeds, standardize, threads

__all__ = ["GROUP", "add_fisher_z", "compile_for", "quantize", "seeds", "standardize", "threads"]
