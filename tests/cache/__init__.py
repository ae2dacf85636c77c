"""What a cache promises: a mapping that never fails because it is full, and never gives a value that nobody stored."""
