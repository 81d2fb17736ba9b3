"""How far drawn samples are from real ones."""
