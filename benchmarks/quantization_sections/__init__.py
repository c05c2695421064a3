"""Parts of `benchmarks.quantization`."""
