import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ablora.store.roots import Roots

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path / "runs", tmp_path / "studies", tmp_path / "cache")


@pytest.fixture(scope="session")
def session_roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    folder = tmp_path_factory.mktemp("report")
    return Roots(folder / "runs", folder / "studies", folder / "cache")


class Browser:
    """A headless Chromium without a network, and what it complained of."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, page: Path, width: int = 1280, height: int = 900, hash_: str = "") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.cdp("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get("about:blank")
        self.complaints(), self.requests()  # of the page before
        self.driver.get(f"{page.as_uri()}{hash_}")

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def cdp(self, command: str, arguments: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def wait(self, script: str, *arguments: Any) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 20).until(lambda driver: driver.execute_script(script, *arguments))

    def complaints(self) -> list[str]:
        """Console messages since they were last asked for; a refusal by the page's policy is one."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What was asked for since then; not what is inside the page, nor what its policy stopped."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        failed = [m["params"] for m in messages if m["method"] == "Network.loadingFailed"]
        stopped = {params["requestId"] for params in failed if params.get("blockedReason") == "csp"}
        asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in asked if params["requestId"] not in stopped]
        return [url for url in urls if not url.startswith(("data:", "about:"))]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install 'ablora[dev]'")
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver on the PATH: tests/browser/up.sh installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
    for flag in [*flags, *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as started:
        yield Browser(started)
