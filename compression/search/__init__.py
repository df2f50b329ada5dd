"""The smallest artifact that keeps a fidelity budget: mixed precision by measured sensitivity."""
