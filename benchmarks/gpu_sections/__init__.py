"""What `benchmarks.gpu` measures, one module each."""
