"""The flows that a server offers: what a deployment is called, and where its flow is."""

from __future__ import annotations

FLOWS = {
    "merge": "flows.merge:merge_models",
    "merge-many": "flows.many:merge_many",
    "publish": "flows.publish:publish_model",
    "verify": "flows.verify:verify_model",
    "watch": "flows.watch:watch_sources",
}
"""Deployment -> module and flow; the flow's name in Prefect is that of its function."""

FLOW_NAMES = [place.partition(":")[2] for place in FLOWS.values()]
