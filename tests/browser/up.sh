#!/usr/bin/env bash
# What the tests of the report need beside Python: Chromium and its driver. Does nothing where they are; installs them
# with apt-get on Debian. Their tests skip with a reason where they cannot be had (in CI a skip is a failure).
set -euo pipefail
if command -v chromedriver > /dev/null && command -v chromium > /dev/null; then
    exit 0
fi
if ! command -v apt-get > /dev/null; then
    echo "no apt-get here: install chromium and chromedriver yourself, and put them on the PATH" >&2
    exit 1
fi
root=$([ "$(id -u)" = 0 ] || echo sudo)
$root apt-get update --quiet
DEBIAN_FRONTEND=noninteractive $root apt-get install --quiet --yes --no-install-recommends chromium chromium-driver
