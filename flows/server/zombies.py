"""The automation that ends zombies: runs that a server shows as running though their process is gone.

A worker reports a run whose process dies. When worker and run die together, nobody does: the run stays RUNNING for
ever, and holds its place in every limit. A run says every minute that it lives; one that has not for three has crashed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from flows.catalogue import FLOW_NAMES

NAME = "xmerge: runs without a heartbeat have crashed"
WITHIN = timedelta(seconds=180)
"""Three heartbeats of PREFECT_FLOWS_HEARTBEAT_FREQUENCY, as flows/server/settings.py and the deployments set it."""
MESSAGE = "No heartbeat for {seconds:.0f} s: its process or its machine is gone. Run it again to resume."


def end_zombies(client: SyncPrefectClient, within: timedelta = WITHIN) -> Literal["made", "changed", "there"]:
    """Have the server mark runs without a heartbeat as crashed; whether the automation had to be made.

    Args:
        client: Of the server.
        within: How long a run may say nothing; at least 10 s, and three times what lies between two heartbeats.
    """
    wanted = describe_automation(within)
    found = client.find_automation(NAME)
    if found is None:
        client.create_automation(wanted)
        return "made"
    if _comparable(found) == _comparable(wanted):
        return "there"
    client.update_automation(found.id, wanted)
    return "changed"


def describe_automation(within: timedelta) -> AutomationCore:
    """After a heartbeat, one more event of that run within the time: the next heartbeat, or its end."""
    message = MESSAGE.format(seconds=within.total_seconds())
    return AutomationCore(
        name=NAME,
        description="Ends runs of xmerge whose process was killed together with its worker, or whose machine is gone.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": ["flow"], "prefect.resource.name": FLOW_NAMES}
            ),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            # Any: an interrupted run ends in a state with a name of its own.
            expect={"prefect.flow-run.*"},
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def _comparable(automation: AutomationCore) -> dict[str, Any]:
    said = automation.model_dump(mode="json", include={"name", "description", "enabled", "trigger", "actions"})
    # A person may have switched it off, and each has an id of its own.
    del said["enabled"]
    said["trigger"].pop("id", None)
    return said
