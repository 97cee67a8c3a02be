"""Where the layers of a run are merged: in threads here, or by a cluster of Dask or Ray."""
