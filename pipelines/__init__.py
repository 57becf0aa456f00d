"""Ray jobs: accumulate, and later complete and evaluate."""
