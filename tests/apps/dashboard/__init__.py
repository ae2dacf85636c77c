"""The dashboard keeps its promises: started as a user does, over its real socket, in a real browser."""
