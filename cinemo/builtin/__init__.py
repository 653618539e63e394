"""The embedded default model: `builtin:tiny` is the directory tiny/. recipes/builtin_tiny made it."""
