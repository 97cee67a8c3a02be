"""The steps of a merge as Prefect tasks: cache key, retries, limits; what a step does stands in xmerge."""

from tasks.telling import tell_plainly

# Here, because every process that carries out a step imports this package, on whatever machine.
tell_plainly()
