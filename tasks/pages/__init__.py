"""What a run shows on Prefect's pages, a file for each page."""
