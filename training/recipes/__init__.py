"""Named recipes: differences from the defaults, as YAML files."""
