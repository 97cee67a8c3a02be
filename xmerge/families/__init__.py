"""Family files: data, one YAML for each family."""
