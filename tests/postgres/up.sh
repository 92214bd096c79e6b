#!/usr/bin/env bash
# What the tests of searches in a database need beside Python: PostgreSQL's server. Does nothing where it is; installs it
# with apt-get on Debian. The tests start a server of their own in a temporary folder, and skip with a reason where there
# is none (in CI a skip is a failure).
set -euo pipefail
if compgen -G "/usr/lib/postgresql/*/bin/initdb" > /dev/null; then
    exit 0
fi
if ! command -v apt-get > /dev/null; then
    echo "no apt-get here: install PostgreSQL's server yourself" >&2
    exit 1
fi
root=$([ "$(id -u)" = 0 ] || echo sudo)
$root mkdir -p /etc/postgresql-common/createcluster.d
echo "create_main_cluster = false" | $root tee /etc/postgresql-common/createcluster.d/ablora.conf > /dev/null
$root apt-get update --quiet
DEBIAN_FRONTEND=noninteractive $root apt-get install --quiet --yes --no-install-recommends postgresql
