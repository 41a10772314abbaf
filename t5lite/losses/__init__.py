"""What training minimises. A loss meets the model through its apply function, never by import."""
