"""Parts of `benchmarks.programs`."""
