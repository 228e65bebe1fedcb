"""Sessions out of one driver into another, or into lines and back."""
