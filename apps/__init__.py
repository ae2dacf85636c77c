"""Applications that use persistmem as anybody would."""
