"""What is done with trained parameters: scoring a split, and writing targets."""
