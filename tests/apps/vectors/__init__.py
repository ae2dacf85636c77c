"""The similarity search keeps its promises."""
