"""What happens, in order: the Prefect flows, and the one function that the command line calls."""
