"""What each kernel computes, in plain torch: any dtype (fp64 in tests), any device, no thought for speed.

Called by tests and benchmarks only.
"""
