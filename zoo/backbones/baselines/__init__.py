"""What the zoo's models are compared with."""
