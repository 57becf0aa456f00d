"""Detection heads on a bird's-eye-view map."""
