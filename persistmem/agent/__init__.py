"""A process that shares one carrier among many processes."""
