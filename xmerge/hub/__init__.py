"""The Hub: what a merge reads from it and how an output goes there; no other module talks to it.

`huggingface_hub` is imported inside the functions, so that importing this package costs nothing.
"""

from xmerge.hub.names import is_repo_id
from xmerge.hub.reading import RemoteHeader, fetch_metadata, fetch_shards, list_files, pin_revision, read_shard_headers
from xmerge.hub.uploading import UploadedTo, upload_folder

__all__ = [
    "RemoteHeader",
    "UploadedTo",
    "fetch_metadata",
    "fetch_shards",
    "is_repo_id",
    "list_files",
    "pin_revision",
    "read_shard_headers",
    "upload_folder",
]
