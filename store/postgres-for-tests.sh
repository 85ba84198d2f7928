#!/bin/sh
# A PostgreSQL server for tests: postgres-for-tests.sh <folder of PostgreSQL's programs> <folder to work in> <fsync: on|off>
# Sets up a cluster in a fresh folder, prints that folder (it holds the Unix socket) when the server accepts connections,
# and ends both when the other end of its standard input goes away. Not to be run as root: PostgreSQL refuses.
# With TLS_PORT, it listens to that port of 127.0.0.1 and 127.0.0.2 too, there over TLS alone (TLS_CERTIFICATE, TLS_KEY), and for the database
# "certified" to whom TLS_AUTHORITY has signed for; all three are PEM.
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
listen="-c listen_addresses=''"
if [ -n "${TLS_PORT:-}" ]; then
  (
    umask 077
    printf '%s\n' "$TLS_CERTIFICATE" >"$dir/server.pem"
    printf '%s\n' "$TLS_KEY" >"$dir/server.key"
    printf '%s\n' "$TLS_AUTHORITY" >"$dir/authority.pem"
  )
  printf '%s\n' 'local all all trust' 'hostssl certified all all trust clientcert=verify-ca' 'hostssl postgres all all trust' >"$dir/data/pg_hba.conf"
  listen="-c listen_addresses=127.0.0.1,127.0.0.2 -c port=$TLS_PORT -c ssl=on -c ssl_cert_file='$dir/server.pem' \
    -c ssl_key_file='$dir/server.key' -c ssl_ca_file='$dir/authority.pem'"
fi
"$programs/pg_ctl" -D "$dir/data" -l "$dir/log" -w start -o "$listen -c unix_socket_directories='$dir' \
  -c max_connections=200 -c fsync=$fsync -c synchronous_commit=$fsync -c full_page_writes=$fsync \
  -c shared_buffers=128MB -c max_wal_size=2GB" >/dev/null 2>&1
echo "$dir"
cat >/dev/null
