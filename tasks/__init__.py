"""The steps of a merge as Prefect tasks: cache key, retries, limits; what a step does stands in xmerge."""
