"""Prefect's pages as a person uses them: the form of a deployment, a run, its artifacts and its menu."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from playwright.sync_api import Locator, Page, expect

MILLISECONDS = 30_000.0
"""How long a page may take to show something."""
TRIES, SERVICE_UNAVAILABLE = 5, 503


@dataclass
class Pages:
    """One tab of a browser at a Prefect server."""

    page: Page
    url: str
    shots: str | None
    """A folder for pictures, if they are wanted."""

    def open_form(self, deployment: UUID) -> None:
        """The run dialog of a deployment."""
        self.page.goto(f"{self.url}/v2/deployments/deployment/{deployment}/run")
        self.page.get_by_role("button", name="Submit").wait_for()

    def field(self, name: str, kind: str) -> Locator:
        """The first element of a kind behind the label of a field: Prefect's labels do not say what they label."""
        return self.page.locator(f"xpath=//label[starts-with(normalize-space(.), '{name}')]/following::{kind}[1]")

    def write(self, name: str, text: str) -> None:
        """Fill in a line of text."""
        self.field(name, "textarea").fill(text)

    def add(self, name: str, text: str) -> None:
        """Add an item to a list."""
        self.field(name, "button[.='Add item']").click()
        self.field(name, "textarea").fill(text)

    def write_json(self, name: str, text: str) -> None:
        """Fill in a field of JSON."""
        editor = self.field(name, "*[contains(@class, 'cm-content')]")
        editor.click()
        self.page.keyboard.press("Control+A")
        # At one blow: typed, the editor closes every bracket by itself.
        self.page.keyboard.insert_text(text)
        expect(editor).to_have_text(text)

    def choose(self, name: str, old: str, new: str) -> None:
        """Take another item of a menu."""
        self.field(name, f"button[contains(., '{old}')]").click()
        self.page.get_by_role("option", name=new, exact=True).click()
        self.field(name, f"button[contains(., '{new}')]").wait_for()

    def switch(self, name: str) -> None:
        """Turn a switch on or off."""
        self.field(name, "*[@role='switch']").click()

    def submit(self) -> UUID:
        """Send the form, again if the server's database is busy; the run that it makes."""
        for _ in range(TRIES):
            with self.page.expect_response(lambda response: response.url.endswith("/create_flow_run")) as answer:
                self.page.get_by_role("button", name="Submit").click()
            if answer.value.status != SERVICE_UNAVAILABLE:
                break
        assert answer.value.ok, answer.value.text()
        return UUID(answer.value.json()["id"])

    def open_run(self, run: UUID) -> list[dict[str, Any]]:
        """The page of a run, when its graph is drawn; the nodes of the graph."""
        # A page of a run asks for its graph again and again: that is not the answer which is waited for.
        self.page.goto("about:blank")
        with self.page.expect_response(lambda response: "/graph-v2" in response.url) as answer:
            self.page.goto(f"{self.url}/v2/runs/flow-run/{run}")
        expect(self.page.locator("canvas").first).to_be_visible(timeout=MILLISECONDS)
        return [node for _, node in answer.value.json()["nodes"]]

    def open_tab(self, name: str) -> None:
        """One of the tabs of a run's page."""
        self.page.get_by_role("tab", name=name).click()

    def choose_in_menu(self, item: str, button: str | None = None) -> None:
        """Take an item of a run's menu, and confirm it where it is asked for."""
        self.page.get_by_role("button", name="Open menu").click()
        self.page.get_by_role("menuitem", name=item).click()
        if button:
            self.page.get_by_role("button", name=button, exact=True).click()

    def open_artifact(self, key: str) -> None:
        """From a run's page to the latest version of one of its artifacts."""
        self.open_tab("Artifacts")
        self.page.locator(f"a[href$='/artifacts/key/{key}']").first.click()
        self.page.locator("a[href*='/artifacts/artifact/']").first.click()

    def sees(self, text: str) -> None:
        """Wait until a text is on the page."""
        expect(self.page.get_by_text(text).first).to_be_visible(timeout=MILLISECONDS)

    def shoot(self, name: str, height: int = 900) -> None:
        """Take a picture of the top of the page, if pictures are wanted."""
        if self.shots is None:
            return
        Path(self.shots).mkdir(parents=True, exist_ok=True)
        self.page.set_viewport_size({"width": 1280, "height": height})
        # The graph finds its size again a little later, and is drawn in the end by an animation.
        self.page.wait_for_timeout(1500)
        self.page.evaluate("window.scrollTo(0, 0)")
        self.page.screenshot(path=f"{self.shots}/{name}.png")
        self.page.set_viewport_size({"width": 1280, "height": 900})
