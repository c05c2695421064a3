"""What `benchmarks.structured` measures, one module each."""
