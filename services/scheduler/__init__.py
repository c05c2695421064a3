"""The scheduler: waiting and running requests, radix KV index and page allocator of each engine, the step loop."""
