"""The dataflows: cinemo on Ray. Functions that build or run; they never read argv and never call ray.init."""
