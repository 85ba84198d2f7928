#!/bin/sh
# A PostgreSQL server for tests: postgres-for-tests.sh <folder of PostgreSQL's programs> <folder to work in> <fsync: on|off>
# Sets up a cluster in a fresh folder, prints that folder (it holds the Unix socket) when the server accepts connections,
# and ends both when the other end of its standard input goes away. Not to be run as root: PostgreSQL refuses.
set -eu
programs=$1
fsync=$3
dir=$(mktemp -d "$2/ota-pg-XXXXXX")
stop() {
  "$programs/pg_ctl" -D "$dir/data" -m immediate -w stop >/dev/null 2>&1 || true
  rm -rf "$dir"
}
trap stop EXIT
"$programs/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C --no-sync >"$dir/log" 2>&1
"$programs/pg_ctl" -D "$dir/data" -l "$dir/log" -w start -o "-c listen_addresses='' -c unix_socket_directories='$dir' \
  -c max_connections=200 -c fsync=$fsync -c synchronous_commit=$fsync -c full_page_writes=$fsync \
  -c shared_buffers=128MB -c max_wal_size=2GB" >/dev/null 2>&1
echo "$dir"
cat >/dev/null
