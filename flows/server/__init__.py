"""The Prefect server that a command uses: found or started, told everything before the command ends, kept truthful."""
