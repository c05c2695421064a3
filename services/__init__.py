"""One package per service; none imports another."""
