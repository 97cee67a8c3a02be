"""The Hub: what a merge reads from it and how an output goes there; no other module talks to it.

`huggingface_hub` is imported inside the functions, so that importing this package costs nothing.
"""

from xmerge.hub.client import is_offline
from xmerge.hub.fetching import fetch_metadata, fetch_shards, is_cached
from xmerge.hub.names import is_repo_id, is_url, repo_of_url
from xmerge.hub.pieces import fetch_ranges
from xmerge.hub.ranges import Range
from xmerge.hub.reading import RemoteHeader, list_files, pin_revision, read_shard_headers
from xmerge.hub.sparse import join_ranges
from xmerge.hub.uploading import UploadedTo, upload_folder

__all__ = [
    "Range",
    "RemoteHeader",
    "UploadedTo",
    "fetch_metadata",
    "fetch_ranges",
    "fetch_shards",
    "is_cached",
    "is_offline",
    "is_repo_id",
    "is_url",
    "join_ranges",
    "list_files",
    "pin_revision",
    "read_shard_headers",
    "repo_of_url",
    "upload_folder",
]
