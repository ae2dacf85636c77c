"""The demo application keeps its promises."""
